"""Names of this package in a page's text lead to the reference.

A page says ``analysis.firing_patterns`` in plain Markdown, which reads without a build; in the
built site the literal is a link. What is linked is what the reference describes under ``sj_ext.``
and that name; a word that is only by chance the name of a module (``layer``) is left alone.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")


class LinkNames(SphinxPostTransform):
    """Makes references of literals, before references are resolved."""

    default_priority = 5

    def run(self, **kwargs) -> None:
        objects = self.env.domains["py"].objects
        for literal in list(self.document.findall(nodes.literal)):
            name = described(literal.astext(), objects)
            if name is None or inside_a_reference(literal):
                continue
            reference = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refwarn=False
            )
            reference["refdoc"] = self.env.docname
            literal.replace_self(reference)
            reference += literal


def described(text: str, objects) -> str | None:
    """The full name that a literal stands for, if the reference has it."""
    if not NAME.fullmatch(text):
        return None
    text = text.removesuffix("()")
    for name in (text, f"sj_ext.{text}"):
        if name.startswith("sj_ext.") and name in objects:
            is_word = objects[name].objtype == "module" and text != name and "." not in text
            return None if is_word else name
    return None


def inside_a_reference(node: nodes.Node) -> bool:
    """Whether a node is a link, or part of a signature, already."""
    while node is not None:
        if isinstance(node, nodes.reference | addnodes.pending_xref | addnodes.desc_signature):
            return True
        node = node.parent
    return False


def setup(app):
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
