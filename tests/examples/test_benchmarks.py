"""The benchmark command: records that survive a kill, and tables that keep to the contract."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from benchmarks.__main__ import load, names, run
from benchmarks.framework import record
from benchmarks.framework.record import SIZES, Context, Record, markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


class Table(types.ModuleType):
    """A table of squares; ``kill`` is the cell in which the process ends."""

    TITLE = "Squares"

    def __init__(self):
        super().__init__("squares")
        self.measured, self.kill = [], None

    def cells(self, size):
        return [{"x": x} for x in range({"short": 3, "medium": 5, "full": 9}[size])]

    def measure(self, cell, context):
        if cell["x"] == self.kill:
            raise KeyboardInterrupt
        self.measured.append(cell["x"])
        return {"square": cell["x"] ** 2}

    def table(self, rows):
        return markdown(["x", "square"], [[r["cell"]["x"], r["figures"]["square"]] for r in rows])


@pytest.fixture
def squares(monkeypatch):
    table = Table()
    monkeypatch.setitem(sys.modules, "benchmarks.tables.squares", table)
    return table


def figures(rows):
    return [(row["cell"], row["figures"]) for row in rows]


def test_a_killed_run_goes_on_where_it_was(squares, tmp_path):
    context = Context("medium")
    whole = run("squares", context, tmp_path / "whole")
    squares.measured.clear()
    squares.kill = 3
    with pytest.raises(KeyboardInterrupt):
        run("squares", context, tmp_path / "killed")
    squares.kill = None
    again = run("squares", context, tmp_path / "killed")
    assert squares.measured == [0, 1, 2, 3, 4]  # none twice
    assert figures(again.rows) == figures(whole.rows)
    for name in ("squares-medium.md", "squares-medium.json"):
        assert (tmp_path / "killed" / name).exists()


def test_a_kill_while_saving_leaves_the_last_record(squares, tmp_path, monkeypatch):
    context = Context("short")
    run("squares", context, tmp_path)
    path = tmp_path / "squares-short.json"
    before = path.read_text()
    kept = Record.read(path)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(record.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.measure({"x": 100}, lambda: {"square": 10_000})
    assert path.read_text() == before


def test_rows_keep_the_order_of_the_cells(squares, tmp_path):
    run("squares", Context("short"), tmp_path)
    shutil.move(tmp_path / "squares-short.json", tmp_path / "squares-medium.json")
    content = json.loads((tmp_path / "squares-medium.json").read_text())
    content["rows"].pop(0)
    (tmp_path / "squares-medium.json").write_text(json.dumps(content))
    rows = run("squares", Context("medium"), tmp_path).rows
    assert [row["cell"]["x"] for row in rows] == [0, 1, 2, 3, 4]


def test_a_record_of_another_environment_is_refused(squares, tmp_path):
    context = Context("short")
    run("squares", context, tmp_path)
    path = tmp_path / "squares-short.json"
    content = json.loads(path.read_text())
    content["environment"]["torch"] = "1.0"
    content["environment"]["processor"] = "Z80"
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="processor, torch"):
        run("squares", context, tmp_path)
    assert json.loads(path.read_text()) == content


def test_other_images_are_another_environment_only_for_tables_with_images(squares, tmp_path):
    run("squares", Context("short"), tmp_path / "images")
    with pytest.raises(RuntimeError, match="images"):
        run("squares", Context("short", data_dir=tmp_path), tmp_path / "images")
    squares.IMAGES = False
    rows = run("squares", Context("short"), tmp_path / "none").rows
    assert run("squares", Context("short", data_dir=tmp_path), tmp_path / "none").rows == rows


def test_a_rendered_table_names_its_origin(squares, tmp_path):
    run("squares", Context("short"), tmp_path)
    text = (tmp_path / "squares-short.md").read_text()
    assert "| 2 | 4 |" in text
    assert torch.__version__ in text and record.host.VERSION in text


def test_there_are_tables():
    assert {"memory", "complexity", "reversal_error", "imp_figures", "kernel"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_tables_keep_to_the_contract(name):
    table = load(name)
    assert isinstance(table.TITLE, str) and table.TITLE
    counts = {}
    for size in SIZES:
        cells = table.cells(size)
        assert cells and all(isinstance(cell, dict) for cell in cells)
        # a cell read back from the record must be found again
        assert json.loads(json.dumps(cells)) == cells
        assert len({json.dumps(cell, sort_keys=True) for cell in cells}) == len(cells)
        assert table.cells(size) == cells
        counts[size] = len(cells)
    assert counts["short"] < counts["medium"] and counts["short"] < counts["full"]
    assert callable(table.measure) and callable(table.table)


FRAGMENTS = sorted(path for size in SIZES for path in RESULTS.glob(f"*-{size}.md"))


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.stem)
def test_the_pages_show_the_committed_records(path, tmp_path):
    kept = Record.read(path.with_suffix(".json"))
    assert path.stem == f"{kept.table}-{kept.size}"
    record.render(load(kept.table), kept, tmp_path)
    rendered = (tmp_path / f"{path.stem}.md").read_text("utf-8")
    assert path.read_text("utf-8") == rendered
    if (tmp_path / f"{path.stem}.png").exists():
        assert path.with_suffix(".png").exists()


def test_every_fragment_is_shown_on_a_page():
    pages = "".join(p.read_text("utf-8") for p in RESULTS.glob("*.md") if p not in FRAGMENTS)
    assert all(f"{{include}} {path.name}" in pages for path in FRAGMENTS)


def test_the_command_runs_a_table_and_lists_all(tmp_path):
    def command(*arguments):
        line = [sys.executable, "-W", "ignore", str(ROOT / "examples/benchmarks"), *arguments]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = command("list")
    assert all(name in listed for name in names())
    command("reversal_error", "--short")
    assert (tmp_path / "runs/benchmarks/reversal_error-short.md").exists()
    path = command("page", "runs/benchmarks").strip()
    assert path.endswith("reversal_error-short.md")
