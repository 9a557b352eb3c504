"""What has no words is no message: numbers and literals read the same in every language.

A paragraph, a heading or a cell without a word stays out of the catalogues, so that a table that is
measured again leaves them as they are.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.transforms import SphinxTransform

NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")
LETTER = re.compile(r"[^\W\d_]")


class LeaveOut(SphinxTransform):
    """Marks what has no words as not translatable, before messages are read or replaced."""

    default_priority = 10

    def apply(self, **kwargs) -> None:
        for node in self.document.findall(nodes.TextElement):
            if not isinstance(node, nodes.Inline) and not has_words(node):
                node["translatable"] = False


def has_words(node: nodes.Element) -> bool:
    """Whether letters are left without literals and numbers, in what is read or an image's alt."""
    texts = [t for t in node.findall(nodes.Text) if not isinstance(t.parent, nodes.literal)]
    alts = [image.get("alt", "") for image in node.findall(nodes.image)]
    return LETTER.search(NUMBER.sub("", " ".join([*texts, *alts]))) is not None


def setup(app):
    app.add_transform(LeaveOut)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
