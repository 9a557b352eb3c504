"""Choosing a plan by the bytes that a training step is counted to need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ..analysis import activation_memory

__all__ = ["Plan", "bytes_of", "cheapest_plan"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class Plan(NamedTuple):
    """How to run a network; as the arguments of :func:`~sj_ext.memory.compact` have it."""

    recompute: str
    keep: str
    slices: int


def bytes_of(budget: Any) -> int:
    """A size such as ``'8 GB'``, ``'512 MiB'`` or a number of bytes.

    Raises:
        TypeError: ``budget`` is neither a string nor a number.
        ValueError: it is no size above 0.
    """
    if isinstance(budget, bool) or not isinstance(budget, str | int | float):
        raise TypeError(
            f"budget must be a size such as '8 GB' or a number of bytes, got {budget!r}"
        )
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]+)\s*", budget)
        unit = _UNITS.get(found[2]) if found else None
        try:
            size = float(found[1]) * unit if found and unit else 0.0
        except ValueError:
            size = 0.0
    else:
        size = float(budget)
    if not 0 < size < float("inf"):
        raise ValueError(
            f"budget must be a size above 0 with a unit of {', '.join(_UNITS)}, such as '8 GB', or "
            f"a number of bytes, got {budget!r}"
        )
    return int(size)


def cheapest_plan(
    budget: int, samples: int, run: Callable[[Plan], Callable[[], None]]
) -> tuple[Plan, int]:
    """The first plan whose training step stays within ``budget``, and the peak counted for it.

    Args:
        budget: bytes.
        samples: how many the batch has.
        run: from a plan to a function that does one training step.

    Raises:
        ValueError: no plan fits, with how many samples can fit at most.
    """
    smallest = None
    for plan in _plans(samples):
        peak = _peak(run(plan))
        if peak is None:
            continue
        if peak <= budget:
            return plan, peak
        smallest = min(smallest or peak, peak)
    if smallest is None:
        raise ValueError(f"budget: no plan runs on this device with a batch of {samples}")
    # what does not grow with the batch can only make it fewer
    most = samples * budget // smallest
    raise ValueError(
        f"budget: a training step of {samples} samples needs at least {smallest:,d} bytes, more "
        f"than {budget:,d}; no more than {most} samples can fit"
    )


def _plans(samples: int) -> Iterator[Plan]:
    """Plans, from the one that takes least time to the one that holds least.

    A second slice costs more than the convolutions that bits have run again: every neuron runs
    twice backwards.
    """
    yield Plan("nothing", "bits", 1)
    slices = 1
    while slices < samples:
        yield from (Plan("segments", keep, slices) for keep in ("inputs", "bits"))
        slices *= 2
    yield from (Plan("segments", keep, samples) for keep in ("inputs", "bits"))


def _peak(step: Callable[[], None]) -> int | None:
    try:
        return activation_memory(step)[1].peak
    except torch.OutOfMemoryError:
        return None
