"""The front door: README and what it leads to read without a build, and say what was measured."""

import importlib.util
import re
import tomllib
from pathlib import Path

import nbformat
import pytest

from sj_ext import host

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def front():
    spec = importlib.util.spec_from_file_location("front", ROOT / "docs" / "front.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def linked(page):
    """The files that a page links to, without anchors and addresses."""
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text("utf-8"))
    return [page.parent / link for link in links if "://" not in link]


def test_the_figures_are_those_of_the_committed_records():
    for path, wanted in front().pages().items():
        assert path.read_text("utf-8") == wanted, f"{path.name}: run `make front`"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_a_repository_page_reads_without_a_build(readme):
    pages = [readme, *linked(readme)]
    assert len(pages) > 8
    for page in pages:
        assert page.exists(), page
        if page.suffix == ".md":
            built = re.findall(r"^(?:```|:::)\{.*|\{[\w:]+\}`.*", page.read_text("utf-8"), re.M)
            assert built == [], f"{page.name} has what only a build shows"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_extras_can_be_installed(readme):
    rows = re.findall(r"^\| (`\w+`(?:[,、] ?`\w+`)*) \|", readme.read_text("utf-8"), re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    extras = PROJECT["optional-dependencies"]
    assert named == set(extras) - {"test", "docs", "dev"}
    for command in re.findall(r'pip install "\.\[([\w,]+)\]"', readme.read_text("utf-8")):
        assert set(command.split(",")) <= set(extras)


def test_the_address_of_the_repository_is_one():
    owner = re.fullmatch(r"https://github\.com/([^/]+)/sj_ext", PROJECT["urls"]["Repository"])[1]
    for path in [*READMES, ROOT / "CITATION.cff", ROOT / "pyproject.toml"]:
        text = path.read_text("utf-8")
        found = re.findall(r"github\.com/([^/\"]+)/sj_ext|//([^/.\"]+)\.github\.io/sj_ext", text)
        assert found and {a or b for a, b in found} == {owner}, path.name


TUTORIALS = sorted(ROOT.glob("docs/tutorials/*.md"))


def cells(book):
    return [(cell.cell_type, cell.source) for cell in book.cells]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_stands_in_the_repository_as_it_ran(page):
    path = ROOT / "docs" / "notebooks" / f"{page.stem}.ipynb"
    book = nbformat.read(path, as_version=4)
    wanted = extension("notebook_download").notebook(page)
    assert cells(book) == cells(wanted), f"{path.name}: run `make docs notebooks`"
    outputs = [o for cell in book.cells for o in cell.get("outputs", ())]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    printed = "".join(o.get("text", "") for o in outputs)
    assert "This page ran in" in printed
    assert not re.search(r"/(home|root|tmp|Users|var)/|Warning|Traceback", printed)
    assert {o.output_type for o in outputs} <= {"stream", "display_data", "execute_result"}


def test_the_notebooks_are_those_of_the_tutorials_and_small():
    books = list((ROOT / "docs" / "notebooks").iterdir())
    assert {book.name for book in books} == {f"{page.stem}.ipynb" for page in TUTORIALS}
    assert sum(book.stat().st_size for book in books) < 3e6


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("see {func}`~sj_ext.pruning.shrink`.", "see `shrink`."),
        ("{func}`sj_ext.search.cost.synops`", "`sj_ext.search.cost.synops`"),
        ("[a](prune.md) and [b](../survey.md)", "[a](prune.ipynb) and [b](../survey.md)"),
    ],
)
def test_a_notebook_has_plain_markdown(text, wanted, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n" + text)
    assert extension("notebook_download").notebook(page).cells[0].source == wanted


def extension(name):
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "docs" / "_extensions" / f"{name}.py"
    )
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pruning.MinimaxPruner", "sj_ext.pruning.MinimaxPruner"),
        ("sj_ext.swap_neurons()", "sj_ext.swap_neurons"),
        ("sj_ext.layer", "sj_ext.layer"),
        ("layer", None),
        ("neuron.LIFNode", None),
        ("x + 1", None),
    ],
)
def test_plain_literals_lead_to_what_the_reference_describes(text, wanted):
    class Described:
        def __init__(self, kind):
            self.objtype = kind

    objects = {
        "sj_ext.pruning.MinimaxPruner": Described("class"),
        "sj_ext.swap_neurons": Described("function"),
        "sj_ext.layer": Described("module"),
    }
    assert extension("link_names").described(text, objects) == wanted


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (["1.0", "", "182 at 8", "2.013 (1.726)"], True),
        (["32.4 ± 0.5", "−0.1 ± 0.5", "+0.6 ± 1.3", "1/80.2", "17,203,856"], True),
        (["7 x 7 and 3 x 3 convolution, stride 2 each", "one"], False),
        (["T-RevSNN", "1"], False),
        ([""], False),
    ],
)
def test_columns_of_numbers_are_told_from_words(column, wanted):
    assert extension("table_numbers").is_numeric(column) is wanted


def test_the_tables_of_the_reference_list_every_public_name_once():
    homes = extension("complete").own_names()
    listed, alone = [], set()
    for page in sorted(ROOT.glob("docs/api/*.md")):
        module = None
        for line in page.read_text("utf-8").splitlines():
            if found := re.fullmatch(r"\.\. automodule:: (\S+)", line):
                module = found[1]
            elif found := re.fullmatch(r"   ([A-Za-z][\w.]*)", line):
                name = f"{module}.{found[1]}"
                listed += [f"{name}.{own}" for own in homes[name]] if name in homes else [name]
                alone |= {name} if name not in homes else set()
    assert len(set(listed)) == len(listed)
    public = {f"{module}.{name}" for module, names in homes.items() for name in names}
    # the reference is built on 2.x, where this class is the host's
    assert public - set(listed) == ({"sj_ext.surrogate.Rect"} if host.GENERATION == 1 else set())
    beside = {"registration.Registration", "search.space.autost.candidate"}
    beside |= {"search.strategy.crossed", "search.strategy.mutated"}
    assert alone - public == {f"sj_ext.{name}" for name in beside}


def test_the_citation_names_this_version():
    version = (ROOT / "sj_ext" / "_version.py").read_text("utf-8").split('"')[-2]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
