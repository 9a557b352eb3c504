"""Shares of lines and of branches that the tests have run, with a floor for each.

    python tests/coverage_floor.py         (after the tests of both hosts: make coverage)

The floors are apart, since a percentage of both together hides one behind the other.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import coverage

FLOORS = {"lines": 95.0, "branches": 90.0}


def shares(data: coverage.Coverage) -> dict[str, float]:
    """Percentages of statements and of branches."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        data.json_report(outfile=str(path))
        totals = json.loads(path.read_text("utf-8"))["totals"]
    return {
        "lines": totals["percent_statements_covered"],
        "branches": totals["percent_branches_covered"],
    }


def main() -> int:
    data = coverage.Coverage()
    data.load()
    data.report(show_missing=True, skip_covered=True)
    found = shares(data)
    for name, share in found.items():
        print(f"{name}: {share:.2f} %, at least {FLOORS[name]:g} % wanted")
    return int(any(share < FLOORS[name] for name, share in found.items()))


if __name__ == "__main__":
    sys.exit(main())
