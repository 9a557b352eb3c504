"""Each tutorial's page offers its notebook, with what it printed."""

from __future__ import annotations

import shutil
from pathlib import Path

WORDS = {"en": "Download this page as a notebook", "zh_CN": "下载本页的 notebook"}


def notebook(app, name: str) -> Path:
    """Where MyST-NB leaves the notebook of a page."""
    return Path(app.outdir).parent / "jupyter_execute" / f"{name}.ipynb"


def offer(app, pagename, templatename, context, doctree) -> None:
    """A link above the page's title."""
    if pagename.startswith("tutorials/") and notebook(app, pagename).exists():
        target = Path(pagename).name + ".ipynb"
        words = WORDS.get(app.config.language, WORDS["en"])
        link = f'<p class="download"><a href="{target}" download>{words}</a></p>'
        context["body"] = link + context["body"]


def copy(app, exception) -> None:
    """The notebooks beside the pages."""
    if exception is None and app.builder.name == "html":
        for name in app.env.found_docs:
            if name.startswith("tutorials/") and notebook(app, name).exists():
                shutil.copy(notebook(app, name), Path(app.outdir) / f"{name}.ipynb")


def setup(app):
    app.connect("html-page-context", offer)
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True}
