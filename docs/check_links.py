"""Links of the built site, checked without network.

    python docs/check_links.py docs/_build/html

Every relative link must lead to a file, and every anchor to an id in it. Of external links only the
form is checked. The language switch is a relative link like any other.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

EXTERNAL = ("http", "https", "mailto")


class Page(HTMLParser):
    """Ids and links of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.ids.add(value)
            elif name in ("href", "src") and tag != "base":
                self.links.append(value)


def check(root: Path) -> tuple[list[str], int]:
    """Broken links below ``root``, and how many there are in all."""
    pages = {path.resolve(): Page(path) for path in sorted(root.rglob("*.html"))}
    broken, count = [], 0
    for path, page in pages.items():
        for link in page.links:
            count += 1
            problem = problem_of(link, path, pages)
            if problem:
                broken.append(f"{path.relative_to(root.resolve())}: {link}: {problem}")
    return broken, count


def problem_of(link: str, path: Path, pages: dict[Path, Page]) -> str | None:
    """What is wrong with a link, if anything."""
    try:
        parts = urlsplit(link)
    except ValueError as error:
        return str(error)
    if parts.scheme == "data":
        return None
    if parts.scheme or parts.netloc:
        if parts.scheme not in EXTERNAL or not (parts.netloc or parts.path):
            return "not a well-formed address"
        if parts.scheme != "mailto" and (" " in link or "." not in parts.netloc):
            return "not a well-formed address"
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return "no such file"
    fragment = unquote(parts.fragment)
    if fragment and target in pages and fragment not in pages[target].ids | {"top"}:
        return "no such anchor"
    return None


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1], "index.html").exists():
        sys.exit("usage: python docs/check_links.py FOLDER, with index.html in it")
    broken, count = check(Path(sys.argv[1]))
    for line in broken:
        print(line)
    print(f"{count} links, {len(broken)} broken")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
