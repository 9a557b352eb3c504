"""Sphinx configuration."""

import logging
import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

import complete  # noqa: E402

import sj_ext  # noqa: E402

project = "sj_ext"
author = "The sj_ext authors"
copyright = "The sj_ext authors"
version = release = sj_ext.__version__

extensions = [
    "complete",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "chinese_search",
    "link_names",
    "notebook_download",
    "survey_table",
    "table_numbers",
    "wordless",
]
# the pages of the API, one a class, are written as reStructuredText: its suffix is the first
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
# tables that other pages include
INCLUDED = ("short", "medium", "full", "table")
exclude_patterns = ["_build", "notebooks", *(f"results/*-{kind}.md" for kind in INCLUDED)]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tutorials run in a folder of their own, on one thread, so that what they print does not depend on
# the machine's cores. `make docs` empties the cache first; the other language and the catalogues
# then read it.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KINETO_LOG_LEVEL"] = "99"
# a profile of its own: nothing of the reader's home folder, no word on the kernel's transport
profile = HERE / "_build" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text(
    'c = get_config()\nc.IPKernelApp.log_level = "ERROR"\n'
)
os.environ["IPYTHONDIR"] = str(profile.parent)
logging.getLogger("traitlets").setLevel(logging.WARNING)
# torch.jit of SpikingJelly 0.0.0.0.14 and profilers without a GPU have nothing to tell a reader
os.environ["PYTHONWARNINGS"] = "ignore"

# A page for every class and function that the tables of api/*.md list, and every module of alike
# functions. Names that differ by case only are files that differ on every file system.
autosummary_context = {"own_names": complete.own_names()}
autosummary_filename_map = {
    "sj_ext.ann2snn.report": "sj_ext.ann2snn.report-function",
    "sj_ext.pruning.resource": "sj_ext.pruning.resource-function",
}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]

language = "en"
locale_dirs = ["locale"]
gettext_compact = False
gettext_uuid = False
gettext_location = False

html_theme = "furo"
html_title = f"sj_ext {version}"
templates_path = ["_templates"]
html_static_path = ["_static"]
copybutton_exclude = ".linenos, .gp, .go"
html_css_files = ["custom.css"]
html_js_files = ["wide_formulas.js"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
suppress_warnings = ["myst.header"]
