"""The directive ``survey-table``: the rows of ``tests/survey.py``, which the tests run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

SOURCE = Path(__file__).parents[2] / "tests" / "survey.py"


def rows() -> list[str]:
    """The table in MyST."""
    spec = importlib.util.spec_from_file_location("survey", SOURCE)
    survey = importlib.util.module_from_spec(spec)
    sys.modules["survey"] = survey  # dataclasses look their module up
    spec.loader.exec_module(survey)

    def cell(method, where) -> str:
        names = []
        for name in method.names:
            ours = name.where == survey.OURS
            if where == survey.OURS and ours:
                names.append(f"`{name.path}`")
            elif where != survey.OURS and not ours and where in name.where:
                names.append(f"`{name.path}`" + (" (fails)" if where in name.broken else ""))
        return ", ".join(names) or "-"

    lines = [
        "| group | method | SpikingJelly 0.0.0.0.14 | SpikingJelly 2.x | sj_ext | note |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in survey.METHODS:
        cells = [method.group, method.title]
        cells += (
            [cell(method, where) for where in (1, 2, survey.OURS)]
            if method.names
            else ["-", "-", "nowhere yet"]
        )
        lines.append("| " + " | ".join([*cells, method.note]) + " |")
    return lines


class SurveyTable(SphinxDirective):
    """Takes no arguments."""

    def run(self):
        self.env.note_dependency(str(SOURCE))
        return self.parse_text_to_nodes(StringList(rows(), source=str(SOURCE)))


def setup(app):
    app.add_directive("survey-table", SurveyTable)
    return {"parallel_read_safe": True}
