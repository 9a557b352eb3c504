"""Tutorials on the generation that the documentation is not built with."""

from pathlib import Path

import nbclient
import pytest
from myst_nb.core.read import read_myst_markdown_notebook

from sj_ext import host

PAGES = sorted(Path(__file__).parents[1].glob("docs/tutorials/*.md"))


def notebook(page):
    return read_myst_markdown_notebook(page.read_text(encoding="utf-8"), path=page)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_tutorial_runs_and_ends_with_its_run_time(page, tmp_path, monkeypatch):
    book = notebook(page)
    assert "This page ran in" in book.cells[-1].source
    if host.GENERATION == 2:  # `make docs` executes it, and a failing cell fails the build
        return
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    printed = "".join(o.get("text", "") for c in book.cells for o in c.get("outputs", ()))
    assert printed.rstrip().endswith(" s.")
    plots = [
        o for c in book.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})
    ]
    assert plots, "a tutorial shows at least one plot"
