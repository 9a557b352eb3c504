"""Timing several ways of doing one thing, in turn, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

#: prepares one run, which is not timed, and returns what is
Side = Callable[[], Callable[[], object]]


def interleaved(
    sides: Mapping[str, Side],
    repeats: int,
    *,
    warm_up: int = 2,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of every side, run in turn; every other round goes through them backwards.

    Args:
        sides: what to time, by name.
        repeats: how often each is timed.
        warm_up: rounds before that, which do not count.
        clock: ``time.process_time`` counts this process alone, ``time.perf_counter`` what passes.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warm_up + repeats):
        for name in list(sides) if repeat % 2 else reversed(sides):
            run = sides[name]()
            start = clock()
            run()
            taken = clock() - start
            if repeat >= warm_up:
                times[name].append(taken)
    return times
