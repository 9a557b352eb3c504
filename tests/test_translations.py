"""The check that says what of the Chinese documentation is out of date, and the search of it."""

import importlib.util
import sys
from pathlib import Path

import pytest
from docutils import nodes
from hypothesis import given, settings
from hypothesis import strategies as st

DOCS = Path(__file__).parents[1] / "docs"


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


sys.path.insert(0, str(DOCS))  # carry_figures imports its neighbour
check = module(DOCS / "check_translations.py")
figures = module(DOCS / "carry_figures.py")
wordless = module(DOCS / "_extensions" / "wordless.py")
search = module(DOCS / "_extensions" / "chinese_search.py")

HEAD = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n"Language: zh_CN\\n"\n\n'


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Write a page of one template and its catalogue, and say what is wrong with it."""
    monkeypatch.setattr(check, "TEMPLATES", tmp_path / "templates")
    monkeypatch.setattr(check, "CATALOGUES", tmp_path / "catalogues")

    def problems(english, *entries):
        for folder, suffix, text in (
            ("templates", "pot", f'msgid "{english}"\nmsgstr ""\n'),
            ("catalogues", "po", "\n".join(entries)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"page.{suffix}").write_text(HEAD + text, encoding="utf-8")
        return check.page_problems("page")[0]

    return problems


def entry(english, chinese, flag=""):
    return f'{flag}msgid "{english}"\nmsgstr "{chinese}"\n'


def test_a_translated_message_has_no_problem(page):
    english = "See {func}`~sj_ext.swap_neurons` and [losses](losses.md), $g$."
    chinese = "参见 {func}`~sj_ext.swap_neurons`、[损失函数](losses.md)和 $g$。"
    assert page(english, entry(english, chinese)) == []


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([entry("Use `x`.", "")], "untranslated"),
        ([entry("Another", "另一个")], "untranslated"),
        ([entry("Use `x`.", "用 `x`。", "#, fuzzy\n")], "fuzzy"),
        ([entry("Use `x`.", "用 `x`。"), entry("Gone", "没有了")], "no longer there"),
        ([entry("Use `x`.", "用 x。")], "`x` is missing"),
        ([entry("Use `x`.", "用 `x` 和 `y`。")], "`y` is not in the English"),
        ([entry("Use `x`.", "用 `x` 的代理梯度。")], "say 替代梯度"),
    ],
)
def test_what_is_out_of_date_is_named(page, entries, problem):
    assert any(problem in found for found in page("Use `x`.", *entries))


def test_committed_catalogues_are_whole():
    assert check.pages()
    for name in check.pages():
        for text, (chinese, fuzzy) in check.messages(check.CATALOGUES / f"{name}.po").items():
            assert chinese and not fuzzy, f"{name}: {text}"
            assert check.wording(text, chinese) == [], f"{name}: {text}"


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """README.md and its translation, up to date with each other."""
    monkeypatch.setattr(check, "README", tmp_path / "README.md")
    monkeypatch.setattr(check, "README_ZH", tmp_path / "README.zh-CN.md")
    block = "```bash\nmake demo  # {}\n```\n"
    check.README.write_text(
        "# A\n\n## Try\n\n| a |\n| --- |\n" + block.format("runs"), encoding="utf-8"
    )
    check.README_ZH.write_text(
        "# A\n\n## 试用\n\n| 甲 |\n| --- |\n" + block.format("运行"), encoding="utf-8"
    )
    check.stamp()
    return check


def test_readme_up_to_date(readme):
    assert readme.readme_problems() == []
    readme.stamp()
    assert readme.readme_problems() == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("## 试用\n", "", "headings"),
        ("## 试用\n", "### 试用\n", "headings"),
        ("| 甲 |\n", "", "table rows"),
        ("make demo", "make test", "code blocks"),
        ("<!-- README.md", "<!-- readme", "first line"),
        ("试用", "宿主", "say SpikingJelly"),
    ],
)
def test_drift_of_the_readme_is_named(readme, old, new, problem):
    text = readme.README_ZH.read_text(encoding="utf-8")
    assert old in text
    readme.README_ZH.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert any(problem in found for found in readme.readme_problems())


def test_a_changed_readme_is_noticed(readme):
    with readme.README.open("a", encoding="utf-8") as file:
        file.write("One more sentence.\n")
    assert any("has changed since" in found for found in readme.readme_problems())


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_part_of_a_sentence_is_found(data):
    sentence = data.draw(st.text("脉冲神经元膜电位剪枝", min_size=2, max_size=30))
    start = data.draw(st.integers(0, len(sentence) - 2))
    stop = data.draw(st.integers(start + 2, len(sentence)))
    language = search.PairSearch({})
    assert set(language.split(sentence[start:stop])) <= set(language.split(sentence))


def test_latin_words_and_chinese_runs_are_apart():
    words = search.PairSearch({}).split("训练 swap_neurons，膜电位")
    assert words == ["swap_neurons", "训练", "膜电", "电位"]


@pytest.mark.parametrize(
    ("old", "translation", "new", "expected"),
    [
        ("in 752 s, on 2 cores", "2 核，752 秒", "in 1,020 s, on 4 cores", "4 核，1,020 秒"),
        ("2 to 2", "2 到 2", "2 to 3", "2 到 3"),
        ("2 of 2", "共 2 个中的 2 个，2", "2 of 3", None),  # which of the two is not known
        ("3 seeds", "3 个种子，5 轮", "4 seeds", None),  # 5 is not in the English
        ("3 seeds", "3 个种子", "4 runs", None),
    ],
)
def test_other_numbers_are_put_into_a_translation(old, translation, new, expected):
    assert figures.carry(old, translation, new) == expected


def test_a_page_gets_its_new_numbers(page, monkeypatch):
    entries = entry("took 3 s", "用时 3 秒"), entry("the rest", "其余")
    assert page("took 4 s", *entries) != []
    monkeypatch.setattr(figures, "CATALOGUES", check.CATALOGUES)
    monkeypatch.setattr(figures, "TEMPLATES", check.TEMPLATES)
    assert figures.carry_page("page") == 1
    assert check.messages(check.CATALOGUES / "page.po")["took 4 s"] == ("用时 4 秒", False)
    assert figures.carry_page("page") == 0


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([nodes.Text("1.5e-07 ± 0.3%")], False),
        (
            [nodes.literal(text="swap_neurons"), nodes.Text(", "), nodes.literal(text="theta")],
            False,
        ),
        ([nodes.literal(text="theta"), nodes.Text(" learns")], True),
        ([nodes.strong(text="held")], True),
        ([nodes.image(alt="Memory")], True),
        ([nodes.Text("3 步")], True),
    ],
)
def test_numbers_and_literals_alone_are_no_message(parts, words):
    assert wordless.has_words(nodes.paragraph("", "", *parts)) is words
