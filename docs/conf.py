"""Sphinx configuration."""

import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)

import sj_ext  # noqa: E402

project = "sj_ext"
author = "The sj_ext authors"
copyright = "The sj_ext authors"
version = release = sj_ext.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
source_suffix = {".md": "markdown"}
# tables that other pages include
exclude_patterns = ["_build", *(f"results/*-{size}.md" for size in ("short", "medium", "full"))]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]

html_theme = "furo"
html_title = f"sj_ext {version}"
suppress_warnings = ["myst.header"]
