"""Each tutorial's page offers its notebook, with what it printed and in plain Markdown.

`make notebooks` copies them to docs/notebooks, for readers of the repository.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from myst_nb.core.read import read_myst_markdown_notebook
from PIL import Image

WORDS = {"en": "Download this page as a notebook", "zh_CN": "下载本页的 notebook"}
ROLE = re.compile(r"\{\w+\}`(?:~(?:\w+\.)*)?([\w.]+)`")
NEIGHBOUR = re.compile(r"\]\((\w+)\.md\b")
COLOURS = 64  # of a plot
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}


def notebook(page: Path) -> nbformat.NotebookNode:
    """The page's cells, with Markdown that reads without Sphinx, and no output yet."""
    book = read_myst_markdown_notebook(page.read_text(encoding="utf-8"), path=page)
    for number, cell in enumerate(book.cells):
        cell.id = str(number)
        if cell.cell_type == "markdown":
            cell.source = NEIGHBOUR.sub(r"](\1.ipynb", ROLE.sub(r"`\1`", cell.source))
    return book


def executed(page: Path, cache: str) -> nbformat.NotebookNode:
    """The same with what its cells printed when the documentation was built."""
    book = get_cache(cache).merge_match_into_notebook(notebook(page))[1]
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [compact(output) for output in joined(cell.outputs)]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.metadata = nbformat.from_dict({"kernelspec": spec, "language_info": LANGUAGE})
    return book


def joined(outputs: list) -> list:
    """Neighbouring pieces of one stream in one."""
    found: list = []
    for output in outputs:
        if found and output.get("name") and output.get("name") == found[-1].get("name"):
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def compact(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output whose plot is on white, since viewers differ in theme, and of few colours."""
    data = output.get("data", {})
    if "image/png" in data:
        plot = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGBA")
        paper = Image.new("RGBA", plot.size, "white")
        paper.alpha_composite(plot)
        file = io.BytesIO()
        paper.convert("RGB").quantize(COLOURS).save(file, "png", optimize=True)
        data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return output


def was_executed(app, name: str) -> bool:
    """Whether a page is a tutorial that has run."""
    return name.startswith("tutorials/") and app.config.nb_execution_mode == "cache"


def offer(app, pagename, templatename, context, doctree) -> None:
    """A link above the page's title."""
    if was_executed(app, pagename):
        target = Path(pagename).name + ".ipynb"
        words = WORDS.get(app.config.language, WORDS["en"])
        link = f'<p class="download"><a href="{target}" download>{words}</a></p>'
        context["body"] = link + context["body"]


def write(app, exception) -> None:
    """The notebooks beside the pages."""
    if exception is None and app.builder.name == "html":
        for name in app.env.found_docs:
            if was_executed(app, name):
                book = executed(Path(app.env.doc2path(name)), app.config.nb_execution_cache_path)
                nbformat.write(book, Path(app.outdir) / f"{name}.ipynb")


def setup(app):
    app.connect("html-page-context", offer)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
