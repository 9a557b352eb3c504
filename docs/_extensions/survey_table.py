"""The directive ``survey-table``: the rows of ``tests/survey.py``, which the tests run."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

SOURCE = Path(__file__).parents[2] / "tests" / "survey.py"


def rows() -> list[str]:
    """A heading and a table for every group, in MyST."""
    spec = importlib.util.spec_from_file_location("survey", SOURCE)
    survey = importlib.util.module_from_spec(spec)
    sys.modules["survey"] = survey  # dataclasses look their module up
    spec.loader.exec_module(survey)
    places = {survey.BOTH: "both lines", survey.NEW: "2.x", survey.OURS: "sj_ext"}

    def where(method) -> str:
        parts = []
        for place, words in places.items():
            names = [f"`{name.path}`" for name in method.names if name.where == place]
            if names:
                parts.append(f"{words}: {', '.join(names)}")
        text = "; ".join(parts) or "nowhere yet"
        return f"{text} ({method.note})" if method.note else text

    lines = []
    for group, methods in itertools.groupby(survey.METHODS, key=lambda method: method.group):
        lines += [
            f"**{group.capitalize()}**",
            "",
            "| method | where |",
            "| --- | --- |",
        ]
        lines += [f"| {m.title} | {where(m)} |" for m in methods]
        lines.append("")
    return lines


class SurveyTable(SphinxDirective):
    """Takes no arguments."""

    def run(self):
        self.env.note_dependency(str(SOURCE))
        return self.parse_text_to_nodes(StringList(rows(), source=str(SOURCE)))


def setup(app):
    app.add_directive("survey-table", SurveyTable)
    return {"parallel_read_safe": True}
