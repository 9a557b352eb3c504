"""Tables of numbers read well: columns of numbers get a class, which the style sheet aligns.

A column is one of numbers if most of its cells begin with a number and are short. Where a first
column repeats the name above it, the cell gets the class ``again``.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

NUMBER = re.compile(r"[+\-−]?\d[\d,.]*")
LONGEST = 24  # characters of 32.4 ± 0.5, 182 at 8, 2.013 (1.726), 17,203,856 and the like


class AlignNumbers(SphinxPostTransform):
    """Marks cells of numbers."""

    default_priority = 900

    def run(self, **kwargs) -> None:
        for group in self.document.findall(nodes.tgroup):
            head = next(iter(group.findall(nodes.thead)), None)
            body = next(iter(group.findall(nodes.tbody)), None)
            if body is None:
                continue
            rows = [list(row.children) for row in body.children]
            for i in range(max((len(row) for row in rows), default=0)):
                cells = [row[i] for row in rows if i < len(row)]
                if is_numeric([cell.astext() for cell in cells]):
                    heads = [row.children[i] for row in head.children] if head else []
                    for cell in (*cells, *heads):
                        cell["classes"].append("number")
            mark_repeated(rows)


def is_numeric(texts: list[str]) -> bool:
    """Whether a column is one of numbers."""
    filled = [text.strip() for text in texts if text.strip()]
    numbers = [text for text in filled if NUMBER.match(text) and len(text) <= LONGEST]
    return bool(filled) and len(numbers) >= 0.8 * len(filled)


def mark_repeated(rows: list[list[nodes.Node]]) -> None:
    """The class ``again`` for a first cell that says what the one above it says."""
    above = None
    for row in rows:
        text = row[0].astext()
        if text and text == above:
            row[0]["classes"].append("again")
        above = text


def setup(app):
    app.add_post_transform(AlignNumbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
