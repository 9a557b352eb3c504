"""Translations of what was measured again.

    python docs/carry_figures.py

A message of which only numbers have changed gets the translation it had, with the numbers of the
present page. `make catalogues` runs this between the gettext builder and the update of the
catalogues; whatever else has changed is left to the translator.
"""

from __future__ import annotations

import re

from check_translations import CATALOGUES, TEMPLATES, pages
from sphinx_intl.catalog import dump_po, load_po

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def carry(old: str, translation: str, new: str) -> str | None:
    """The translation of ``old`` with the numbers of ``new``; None where it does not follow."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return None
    before, after = NUMBER.findall(old), NUMBER.findall(new)
    present = NUMBER.findall(translation)
    if present == before:
        values = iter(after)
    else:
        pairs = set(zip(before, after, strict=True))
        meaning = dict(pairs)
        if len(meaning) < len(pairs) or not meaning.keys() >= set(present):
            return None
        values = iter([meaning[number] for number in present])
    return NUMBER.sub(lambda _: next(values), translation)


def carry_page(page: str) -> int:
    """Add to a page's catalogue what follows from it, and say how many messages those are."""
    path, template = CATALOGUES / f"{page}.po", TEMPLATES / f"{page}.pot"
    if not path.exists() or not template.exists():
        return 0
    catalogue = load_po(path)
    known = {m.id: m for m in catalogue if m.id}
    wanted = [m.id for m in load_po(template) if m.id and m.id not in known]
    usable = [(m.id, m.string) for m in known.values() if m.string and not m.fuzzy]
    carried = 0
    for new in wanted:
        found = next(filter(None, (carry(old, text, new) for old, text in usable)), None)
        if found:
            catalogue.add(new, found)
            carried += 1
    if carried:
        dump_po(path, catalogue, width=-1)
    return carried


def main() -> None:
    for page in pages():
        if count := carry_page(page):
            print(f"{page}: {count} messages with other numbers")


if __name__ == "__main__":
    main()
