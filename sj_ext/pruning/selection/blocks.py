"""One pass over many tensors, block by block, over several threads."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

#: weights per block of a pass: its scratch stays in the processor's cache, and threads seldom meet
BLOCK = 1 << 20
#: values of one dot product
ROW = 1 << 10


def key_dtype(tensors: Sequence[torch.Tensor]) -> np.dtype:
    """The dtype in which magnitudes are compared: exact for every tensor."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return np.dtype(np.float64 if wide else np.float32)


def torch_kind(dtype: np.dtype) -> torch.dtype:
    return torch.float64 if dtype == np.float64 else torch.float32


def _blocks(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int, int]]:
    jobs = []
    for i, tensor in enumerate(tensors):
        # a device is slow to start and quick to run: larger blocks there
        step = BLOCK if tensor.device.type == "cpu" else BLOCK << 8
        jobs += [(i, at, min(at + step, len(tensor))) for at in range(0, len(tensor), step)]
    return jobs


def _numpy_views(tensors: Sequence[torch.Tensor], dtype: np.dtype) -> list[np.ndarray | None]:
    kind = torch_kind(dtype)
    return [t.numpy() if t.device.type == "cpu" and t.dtype == kind else None for t in tensors]


class Scratch(threading.local):
    """Space for one block of a pass, for each thread its own; parts are taken when first used."""

    def __init__(self, size: int, dtype: np.dtype):
        self.size = size
        self.kind = torch_kind(dtype)

    @functools.cached_property
    def magnitude(self) -> np.ndarray:
        """Of whole rows."""
        return torch.empty(-(-self.size // ROW) * ROW, dtype=self.kind).numpy()

    @functools.cached_property
    def below(self) -> np.ndarray:
        return torch.empty(self.size, dtype=torch.bool).numpy()

    @functools.cached_property
    def inside(self) -> np.ndarray:
        return torch.empty(self.size, dtype=torch.bool).numpy()

    @functools.cached_property
    def index(self) -> np.ndarray:
        return torch.empty(self.size, dtype=torch.int32).numpy()


def over_blocks(tensors, dtype, scan_numpy, scan_torch) -> list[Any]:
    """One pass: a result per block, in order, over as many threads as torch uses.

    Args:
        tensors: one-dimensional.
        dtype: in which magnitudes are compared.
        scan_numpy: ``scan(block, scratch)`` for what NumPy can look at.
        scan_torch: ``scan(block)`` for other dtypes and devices.
    """
    jobs = _blocks(tensors)
    views = _numpy_views(tensors, dtype)
    scratch = Scratch(max((stop - start for _, start, stop in jobs), default=0), dtype)
    if any(view is None for view in views):
        results = []
        for i, start, stop in jobs:
            view = views[i]
            if view is None:
                results.append(scan_torch(tensors[i][start:stop]))
            else:
                results.append(scan_numpy(view[start:stop], scratch))
        return list(zip(jobs, results, strict=True))
    parts = [views[i][start:stop] for i, start, stop in jobs]  # type: ignore[index]
    threads = min(torch.get_num_threads(), math.ceil(len(jobs) / 4))
    with np.errstate(invalid="ignore"):
        if threads <= 1:
            results = list(map(scan_numpy, parts, itertools.repeat(scratch)))
        else:
            with ThreadPoolExecutor(threads, initializer=_ignore_invalid) as pool:
                results = list(pool.map(scan_numpy, parts, itertools.repeat(scratch)))
    return list(zip(jobs, results, strict=True))


def _ignore_invalid() -> None:
    np.seterr(invalid="ignore")
