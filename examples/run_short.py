"""Run every example, benchmark and table that has a short form, one after the other.

    python examples/run_short.py            (or: make examples)

Prints what each prints and how long it took; ends with an error if one failed. Minutes on two CPU
cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parent


def short_forms() -> list[list[str]]:
    """The scripts that take ``--short``, then the tables of the results page."""
    scripts = sorted(FOLDER.glob("*.py")) + sorted(FOLDER.glob("benchmarks/[!_]*.py"))
    this = Path(__file__).resolve()
    forms = [
        [script.relative_to(FOLDER).as_posix(), "--short"]
        for script in scripts
        if script.resolve() != this and "Command(__doc__, short=" in script.read_text("utf-8")
    ]
    return [*forms, ["benchmarks", "all", "--short"]]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(form[0] for form in short_forms())
    parser.add_argument("names", nargs="*", help=f"run only these, by default all: {names}")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    wanted, forms = parser.parse_args(argv).names, short_forms()
    unknown = set(wanted) - {form[0] for form in forms}
    if unknown:
        parser.error(f"no example is called {', '.join(sorted(unknown))}")
    seconds: dict[str, tuple[float, int]] = {}
    # the networks are small: threads cost more than they give, most of all on a busy machine
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        for script, *arguments in forms:
            if wanted and script not in wanted:
                continue
            name = " ".join([script, *arguments])
            print(f"\n=== {name}", flush=True)
            start = time.perf_counter()
            path = str((FOLDER / script).resolve())
            command = [sys.executable, "-W", "ignore", path, *arguments]
            status = subprocess.run(command, cwd=scratch).returncode
            seconds[name] = time.perf_counter() - start, status
    print("\nseconds  example")
    for name, (took, status) in seconds.items():
        print(f"{took:7.1f}  {name}{'' if status == 0 else f'  FAILED with status {status}'}")
    return int(any(status for _, status in seconds.values()))


if __name__ == "__main__":
    sys.exit(main())
