"""How few weights need to be cut, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from .blocks import Scratch, key_dtype, over_blocks, torch_kind


def smallest_count(
    tensors: Sequence[torch.Tensor], enough: Callable[[list[int]], bool]
) -> tuple[int, list[int]]:
    """The smallest number of weights to cut for which ``enough(cut per tensor)`` is True.

    Bisection over the bit patterns of magnitudes (which are ordered as the magnitudes are), then
    over the weights that equal the one found: at most 32 or 64 passes.

    Args:
        tensors: one-dimensional tensors.
        enough: False for few and True for many; it must hold when all are cut.
    """
    dtype = key_dtype(tensors)
    bits = np.uint64 if dtype == np.float64 else np.uint32
    none = [0] * len(tensors)
    if enough(none):
        return 0, none
    low, high = -1, int(np.array(np.finfo(dtype).max, dtype).view(bits))
    below, upto = none, [len(tensor) for tensor in tensors]
    while high - low > 1:
        middle = (low + high) // 2
        bound = np.array(middle, bits).view(dtype)[()]
        scans = partial(_at_most, bound), partial(_at_most_torch, bound, torch_kind(dtype))
        counts = [0] * len(tensors)
        for (i, _, _), count in over_blocks(tensors, dtype, *scans):
            counts[i] += count
        if enough(counts):
            high, upto = middle, counts
        else:
            low, below = middle, counts
    equals = [u - b for u, b in zip(upto, below, strict=True)]

    def with_equals(number: int) -> list[int]:
        counts = []
        for b, e in zip(below, equals, strict=True):
            counts.append(b + min(number, e))
            number -= min(number, e)
        return counts

    low, high = 0, sum(equals)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(with_equals(middle)) else (middle, high)
    counts = with_equals(high)
    return sum(counts), counts


def _at_most(bound: Any, block: np.ndarray, scratch: Scratch) -> int:
    magnitude, below = scratch.magnitude[: len(block)], scratch.below[: len(block)]
    np.abs(block, out=magnitude)
    np.less_equal(magnitude, bound, out=below)
    return int(np.count_nonzero(below))


def _at_most_torch(bound: Any, kind: torch.dtype, block: torch.Tensor) -> int:
    return int((block.to(kind).abs() <= float(bound)).sum())
