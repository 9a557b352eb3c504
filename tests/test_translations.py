"""The check that says what of the Chinese documentation is out of date, and the search of it."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

DOCS = Path(__file__).parents[1] / "docs"


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


check = module(DOCS / "check_translations.py")
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
