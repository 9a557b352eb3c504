"""The Python in README.md and in the documentation runs, block by block, as a reader would run it.

A page's blocks share their names. ``<!-- skip: next "reason" -->`` before a block leaves it out,
and ``<!-- invisible-code-block: python`` ... ``-->`` runs what a reader has already. Examples in
docstrings run as doctests. Tutorials are executed when the documentation is built.
"""

from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=[
        "README.md",
        "README.zh-CN.md",
        "docs/*.md",
        "docs/concepts/*.md",
        "docs/results/*.md",
    ],
)
docstrings = Sybil(
    parsers=[DocTestParser()],
    patterns=["sj_ext/**/*.py", "sj_ext/*.py"],
    document_types={".py": PythonDocStringDocument},
)
pytest_collect_file = (pages + docstrings).pytest()
