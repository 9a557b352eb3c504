"""Search of the Chinese pages.

Sphinx splits Chinese only with a word list at hand, and never what a reader types; its script for
Chinese also asks for a stemmer that it does not bring. Here both sides are cut into pairs of
neighbouring characters, so that any part of a sentence is found, and Latin words are stemmed as
English.
"""

import re

from sphinx.search.zh import SearchChinese

RUNS = re.compile(r"[\u3400-\u9fff]+")
LATIN = re.compile(r"[a-zA-Z0-9_]+")


class PairSearch(SearchChinese):
    """Pairs of Chinese characters, and Latin words as in Sphinx."""

    language_name = "English"  # the stemmer's
    js_splitter_code = r"""
function splitQuery(query) {
  const parts = query.split(/([\u3400-\u9fff]+)|[^\p{L}\p{N}_]+/u).filter(Boolean);
  return parts.flatMap(function (part) {
    if (!/[\u3400-\u9fff]{2}/.test(part)) return [part];
    return Array.from(part).slice(1).map(function (_, i) { return part.slice(i, i + 2); });
  });
}
"""

    def split(self, input: str) -> list[str]:
        latin = LATIN.findall(input)
        self.latin_terms.update(latin)
        return latin + [run[i : i + 2] for run in RUNS.findall(input) for i in range(len(run) - 1)]


def setup(app):
    app.add_search_language(PairSearch)
    return {"parallel_read_safe": True}
