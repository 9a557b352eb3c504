"""Words that people type find a page in the built site.

    python docs/check_search.py docs/_build/html

Reads the search index of both languages and looks each query up as the page's script does: all of
its words, stemmed, on one page, whole or as a part of a longer word.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import snowballstemmer

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from chinese_search import PairSearch

ENGLISH = ("onnx", "loihi", "nir", "distributed", "cifar10", "fewer time steps", "energy", "prune")
CHINESE = ("分布式", "显存", "剪枝", "初始膜电位", "onnx", "loihi")


def index(path: Path) -> dict:
    """The index that the search page loads."""
    return json.loads(re.sub(r"^Search\.setIndex\(|\)$", "", path.read_text("utf-8").strip()))


def pages(index: dict, words: list[str]) -> set[str]:
    """Names of the pages that have all words."""
    found: set[int] | None = None
    for word in words:
        here: set[int] = set()
        for table in (index["terms"], index["titleterms"]):
            for term, where in table.items():
                if word == term or (len(word) > 2 and word in term):
                    here.update([where] if isinstance(where, int) else where)
        found = here if found is None else found & here
    return {index["docnames"][number] for number in found or ()}


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1], "searchindex.js").exists():
        sys.exit("usage: python docs/check_search.py FOLDER, with searchindex.js in it")
    root, stem = Path(sys.argv[1]), snowballstemmer.stemmer("english")
    english, chinese = index(root / "searchindex.js"), index(root / "zh_CN" / "searchindex.js")
    lost = [q for q in ENGLISH if not pages(english, stem.stemWords(q.split()))]
    lost += [q for q in CHINESE if not pages(chinese, PairSearch({}).split(q))]
    print(f"{len(ENGLISH) + len(CHINESE)} queries, {len(lost)} without a page {' '.join(lost)}")
    if lost:
        sys.exit(1)


if __name__ == "__main__":
    main()
