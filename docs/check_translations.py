"""What of the Chinese documentation is out of date.

    python docs/check_translations.py            report
    python docs/check_translations.py --strict   the same, and fail if anything is out of date
    python docs/check_translations.py --stamp    README.zh-CN.md follows the present README.md

Pages are compared with the catalogues that the gettext builder has just written (`make docs` runs
it). A translation has the literals, roles, links and formulas of its message, and none of the words
that locale/glossary.tsv advises against. README.zh-CN.md is a file of its own: its first line names
the README.md that it was translated from, and its headings, table rows and code blocks, comments
aside, must be those of README.md.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

from babel.messages.pofile import read_po

DOCS = Path(__file__).parent
TEMPLATES = DOCS / "_build" / "gettext"
CATALOGUES = DOCS / "locale" / "zh_CN" / "LC_MESSAGES"
GLOSSARY = DOCS / "locale" / "glossary.tsv"
README, README_ZH = DOCS.parent / "README.md", DOCS.parent / "README.zh-CN.md"
STAMP = re.compile(r"<!-- README\.md ([0-9a-f]{12}) -->")
# what stays as it is: a role or a literal, the target of a link, a formula
MARKUP = re.compile(r"(?:\{[\w:]+\})?`[^`]+`|\]\([^)]+\)|\$[^$]+\$")


def pages() -> list[str]:
    """The pages that are translated, without suffix.

    The front pages and the tutorials always are; of the others, those that have a catalogue.
    """
    names = {"index", "install", "start"}
    names |= {f"tutorials/{p.stem}" for p in (DOCS / "tutorials").glob("*.md")}
    catalogues = (p.relative_to(CATALOGUES).with_suffix("") for p in CATALOGUES.rglob("*.po"))
    names |= {p.as_posix() for p in catalogues if (DOCS / p).with_suffix(".md").exists()}
    return sorted(names)


def messages(path: Path) -> dict[str, tuple[str, bool]]:
    """Each message of a catalogue with its translation and whether it is fuzzy."""
    with path.open("rb") as file:
        catalogue = read_po(file, locale=None if path.suffix == ".pot" else "zh_CN")
    return {str(m.id): (str(m.string or ""), m.fuzzy) for m in catalogue if m.id}


def page_problems(page: str) -> tuple[list[str], int]:
    """What is wrong with a page's translation, and how many messages it has."""
    template = TEMPLATES / f"{page}.pot"
    if not template.exists():
        raise SystemExit(f"{template} is missing: run `make docs` first")
    wanted = messages(template)
    path = CATALOGUES / f"{page}.po"
    if not path.exists():
        return ["not translated"], len(wanted)
    have = messages(path)
    problems = []
    for text in wanted:
        translation, fuzzy = have.get(text, ("", False))
        if fuzzy:
            problems.append(f"fuzzy: {shorten(text)}")
        elif not translation:
            problems.append(f"untranslated: {shorten(text)}")
        else:
            problems += [f"{what}: {shorten(text)}" for what in wording(text, translation)]
    problems += [f"no longer there: {shorten(text)}" for text in have if text not in wanted]
    return problems, len(wanted)


def wording(text: str, translation: str) -> list[str]:
    """What is wrong with a translation that is there."""
    problems = []
    lost = Counter(MARKUP.findall(text))
    lost.subtract(MARKUP.findall(translation))
    problems += [f"{part} is missing" for part, count in lost.items() if count > 0]
    problems += [f"{part} is not in the English" for part, count in lost.items() if count < 0]
    problems += [f"say {use}, not {word}" for word, use in discouraged() if word in translation]
    return problems


def discouraged() -> list[tuple[str, str]]:
    """The glossary's words that are not used, each with the one that is."""
    with GLOSSARY.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [(word, row["use"]) for row in rows for word in row["not"].split(", ") if word]


def readme_stamp() -> str:
    """What the first line of README.zh-CN.md has to say."""
    return f"<!-- README.md {hashlib.sha256(README.read_bytes()).hexdigest()[:12]} -->"


def readme_problems() -> list[str]:
    """What is wrong with README.zh-CN.md."""
    if not README_ZH.exists():
        return ["not translated"]
    text = README_ZH.read_text(encoding="utf-8")
    first = text.splitlines()[0] if text else ""
    problems = []
    if not STAMP.fullmatch(first):
        problems.append("the first line does not name a README.md: run with --stamp")
    elif first != readme_stamp():
        problems.append("README.md has changed since: translate the change, then run with --stamp")
    english = README.read_text(encoding="utf-8")
    if commands(text) != commands(english):
        problems.append("its code blocks are not those of README.md")
    if outline(text) != outline(english):
        problems.append("its headings or table rows are not as many as in README.md")
    problems += [f"say {use}, not {word}" for word, use in discouraged() if word in text]
    return problems


def outline(text: str) -> list[str]:
    """The levels of headings and the table rows, in order; code blocks aside."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.findall(r"^(#+ |\|)", prose, re.M)


def commands(text: str) -> list[str]:
    """Code blocks, without their comments."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.S | re.M)
    return [re.sub(r"[ ]*(#|<!--).*", "", block) for block in blocks]


def stamp() -> None:
    """Put the present README.md into the first line of README.zh-CN.md."""
    lines = README_ZH.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and STAMP.fullmatch(lines[0].strip()):
        lines = lines[1:]
    README_ZH.write_text(readme_stamp() + "\n" + "".join(lines), encoding="utf-8")


def shorten(text: str) -> str:
    """A message in one line."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="fail if anything is out of date")
    parser.add_argument("--stamp", action="store_true", help="README.zh-CN.md is up to date now")
    args = parser.parse_args()
    if args.stamp:
        stamp()
        return
    out_of_date = 0
    reports = {page: page_problems(page) for page in pages()}
    reports["README.zh-CN.md"] = (readme_problems(), 1)
    for name, (problems, total) in reports.items():
        if problems == ["not translated"]:
            print(f"{name}: not translated")
        elif problems:
            print(f"{name}: {len(problems)} of {total} out of date")
            for problem in problems:
                print(f"    {problem}")
        out_of_date += bool(problems)
    print(f"Chinese: {len(reports) - out_of_date} of {len(reports)} pages up to date")
    if args.strict and out_of_date:
        sys.exit(1)


if __name__ == "__main__":
    main()
