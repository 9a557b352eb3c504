#!/usr/bin/env python3
"""Every recording of a folder, on one host: python tests/published/everything.py FOLDER

For who has all of the recordings, of which the repository holds the smallest ones. Where there is
no such folder it says so and ends well. Run from the project's root.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time

#: recordings of rounding, with which ours agrees only where a processor rounds as that of the
#: recording did; there it does, bit by bit
LEFT_OUT = {
    "sdtv2_attn": "holds gradients that are 0 in exact arithmetic, a norm standing behind a norm",
    "ct_sewblock_liaf": "holds one gradient whose rounding in float32 is above the limit",
}


def commands(folder: pathlib.Path) -> list[list[str]]:
    """What holds the package against each part of the folder."""
    checker, papers = folder / "check.py", folder / "papers"
    parts = [
        *sorted((folder / "transformers").glob("*.npz")),
        *sorted((folder / "depth_and_search").glob("revsnn_*.npz")),
    ]
    parts = [part for part in parts if part.stem not in LEFT_OUT]
    networks = sorted(papers.glob("trevsnn_*.npz"))
    published = ["--no-eps", "--load", "sj_ext.model.trevsnn:published_to_ours"]
    searches = ["tests/published/check_search.py", folder / "depth_and_search"]
    found: list[list] = [
        [checker, *parts],
        [*searches, folder / "transformers"],
        [papers / "check_imp.py", papers / "imp_nodes.npz"],
        [papers / "check_minimax.py", papers / "minimax.npz"],
        *(
            [papers / "check_trevsnn.py", *published, "--memory", memory, *networks]
            for memory in ("reversible", "autograd")
        ),
    ]
    return [[str(word) for word in words] for words in found]


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    if not folder.is_dir():
        print(f"skipped: there are no recordings at {folder}")
        return 0
    failed = []
    for words in commands(folder):
        start = time.perf_counter()
        status = subprocess.run([sys.executable, "-W", "ignore", *words]).returncode
        print(f"{time.perf_counter() - start:.0f} s  {words[0]}  status {status}", flush=True)
        failed += [words[0]] * bool(status)
    for name, reason in LEFT_OUT.items():
        print(f"left out: {name} {reason}")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
