"""The weights at given ranks and the sums over those below them, in one pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import blocks, compiled
from .blocks import ROW, Scratch, key_dtype, over_blocks, torch_kind
from .cut import Cut

#: below this many weights everything is taken out in one go
SMALL = 1 << 15
#: wanted size of the sample
SAMPLE = 1 << 20


class NotFinite(ValueError):
    """Weights are NaN or infinite; ``tensors`` are the places of theirs."""

    def __init__(self, tensors: Sequence[int]):
        super().__init__("weights are NaN or infinite")
        self.tensors = list(tensors)


class Ranking:
    """The weights of ranks ``first`` to ``last`` (1 is the smallest) and sums over those below.

    Args:
        tensors: one-dimensional tensors, in the order that ties have.
        first: smallest rank that will be asked for; 0 asks for nothing below rank 1.
        last: largest rank that will be asked for, at most the number of weights.

    Raises:
        ValueError: ranks outside the tensors, or weights that are NaN or infinite; the error's
            ``tensors`` attribute then lists which tensors hold them.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], first: int, last: int):
        self.tensors = list(tensors)
        self.dtype = key_dtype(self.tensors)
        self.total = sum(len(tensor) for tensor in self.tensors)
        if not 0 <= first <= last <= self.total:
            raise ValueError(
                f"ranks must satisfy 0 <= first <= last <= {self.total}, got {first} and {last}"
            )
        self.first, self.last = first, last
        #: passes that were needed
        self.passes = 0
        self._below_counts: list[int] | None = None
        self._find(max(first, 1), max(last, 1))

    # ---- the bracket -------------------------------------------------------------------------

    def _find(self, first: int, last: int) -> None:
        if self.total <= SMALL:
            return self._scan(-1.0, np.inf)
        sample = self._sample()
        n = len(sample)
        # four standard deviations of a rank in a random sample
        shares = (first / self.total, last / self.total)
        spread = [0 if n == self.total else 4 * math.sqrt(n * p * (1 - p)) for p in shares]
        low_margin, high_margin = spread[0] + 2, spread[1] + 2
        while True:
            start = math.floor(n * (first - 1) / self.total - low_margin)
            stop = math.ceil(n * last / self.total + high_margin)
            # two ranks are needed: no reason to sort; the second lies behind the first
            low, done = -1.0, max(start, 0)
            if start >= 0:
                sample = np.partition(sample, start)
                low = sample[start]
            high = np.partition(sample[done:], stop - done)[stop - done] if stop < n else np.inf
            self._scan(low, high)
            low_fits = self.le < first or low < 0
            if not low_fits:  # too much at or below the lower end: is it a mass of equal weights?
                low_fits = sum(self._strictly_below()) < first
            high_fits = self.le + len(self.magnitude) >= last or high == np.inf
            if low_fits and high_fits:
                return
            low_margin *= 1 if low_fits else 4
            high_margin *= 1 if high_fits else 4

    def _sample(self) -> np.ndarray:
        # odd: no resonance with kernel sizes of 2^n; at most a ninth is copied
        stride = max(8, self.total // SAMPLE) | 1
        kind = torch.float64 if self.dtype == np.float64 else torch.float32
        parts, offset = [], 0
        for tensor in self.tensors:
            start = (-offset) % stride
            parts.append(tensor[start::stride].to(kind).abs().cpu().numpy())
            offset += len(tensor)
        return np.concatenate(parts)

    def _scan(self, low, high) -> None:
        self.passes += 1
        low, high = self.dtype.type(low), self.dtype.type(high)
        compiled_scan = compiled.scanner() if self.total >= compiled.LARGE else None
        scan = (
            _scan_numpy
            if compiled_scan is None
            else functools.partial(_scan_compiled, compiled_scan)
        )
        results = over_blocks(
            self.tensors,
            self.dtype,
            lambda block, scratch: scan(block, low, high, scratch),
            lambda block: _scan_torch(block, low, high, self.dtype),
        )
        size = len(self.tensors)
        self.low = float(low)
        self.le_counts, self.le_energy, inside = [0] * size, [0.0] * size, [0] * size
        for (i, _, _), block in results:
            self.le_counts[i] += block.count
            self.le_energy[i] += block.energy
            inside[i] += len(block.index)
        self.le = sum(self.le_counts)
        # inside the bracket: magnitudes in the order of ties, and sorted; where each tensor's begin
        self.starts = np.concatenate([[0], np.cumsum(inside)]).astype(int)
        self.magnitude = np.concatenate([block.magnitude for _, block in results])
        self.ordered = np.sort(self.magnitude)
        self._found = [(start, block.index) for (_, start, _), block in results]
        self._below_counts = None
        self._check_finite()

    def _check_finite(self) -> None:
        bad = [i for i, energy in enumerate(self.le_energy) if not math.isfinite(energy)]
        if bad:
            raise NotFinite(bad)

    def _strictly_below(self) -> list[int]:
        """How many weights of each tensor are below the lower end; one more pass finds them."""
        if self._below_counts is None:
            self._below_counts = self._ties()
        return self._below_counts

    def _ties(self) -> list[int]:
        """Count what is strictly below the lower end; the rest of ``le`` equals it."""
        if self.low <= 0:  # no magnitude is below 0: no pass is needed
            return [0] * len(self.tensors)
        low = self.dtype.type(self.low)

        def count_numpy(block, scratch):
            magnitude, below = scratch.magnitude[: len(block)], scratch.below[: len(block)]
            np.abs(block, out=magnitude)
            np.less(magnitude, low, out=below)
            return int(np.count_nonzero(below))

        def count_torch(block):
            kind = torch.float64 if self.dtype == np.float64 else torch.float32
            return int((block.to(kind).abs() < float(low)).sum())

        self.passes += 1
        counts = [0] * len(self.tensors)
        for (i, _, _), count in over_blocks(self.tensors, self.dtype, count_numpy, count_torch):
            counts[i] += count
        return counts

    # ---- answers -----------------------------------------------------------------------------

    def covers(self, rank: int) -> bool:
        """Can :meth:`magnitude_at` answer for this rank?"""
        below = self.le if self._below_counts is None else sum(self._below_counts)
        return below < rank <= self.le + len(self.magnitude)

    def _split(self, count: int) -> tuple[float, int]:
        """Magnitude of rank ``count`` inside the bracket, and how many of its equals are cut."""
        magnitude = self.ordered[count - self.le - 1]
        return magnitude, count - self.le - int(np.searchsorted(self.ordered, magnitude))

    def magnitude_at(self, rank: int) -> float:
        """The magnitude of rank ``rank``; infinity one past the last weight."""
        if rank == self.total + 1:
            return math.inf
        self._require(rank)
        return self.low if rank <= self.le else float(self._split(rank)[0])

    def _require(self, rank: int) -> None:
        if not self.covers(rank):
            raise ValueError(f"rank must be in {self.first}..{self.last}, got {rank}")

    def _place(self, inside: int) -> tuple[int, int]:
        """Tensor and index of a weight, from its place inside the bracket."""
        tensor = int(np.searchsorted(self.starts, inside, side="right")) - 1
        for start, index in self._found:
            if inside < len(index):
                return tensor, start + int(index[inside])
            inside -= len(index)
        raise RuntimeError("a place outside the bracket")

    def _tied(self, count: int) -> list[int]:
        """How many weights equal to the lower end are cut, per tensor (for ``count < le``)."""
        below_counts = self._strictly_below()
        left = count - sum(below_counts)
        if left < 0:
            raise ValueError(f"rank must be in {self.first}..{self.last}, got {count}")
        cut = []
        for le, below in zip(self.le_counts, below_counts, strict=True):
            cut.append(min(left, le - below))
            left -= cut[-1]
        return cut

    def counts(self, count: int) -> list[int]:
        """How many of the ``count`` smallest weights each tensor holds."""
        if count == 0:
            return [0] * len(self.tensors)
        if count < self.le:
            tied = self._tied(count)
            return [below + t for below, t in zip(self._strictly_below(), tied, strict=True)]
        if count == self.le:
            return list(self.le_counts)
        magnitude, equals = self._split(count)
        counts = []
        for le, start, stop in zip(self.le_counts, self.starts, self.starts[1:], strict=False):
            part = self.magnitude[start:stop]
            equal = min(equals, int(np.count_nonzero(part == magnitude)))
            counts.append(le + int(np.count_nonzero(part < magnitude)) + equal)
            equals -= equal
        return counts

    def energy(self, count: int) -> float:
        """The sum of the squares of the ``count`` smallest weights."""
        if count == 0:
            return 0.0
        if count < self.le:
            tied = sum(self._tied(count))
            equal = self.le - sum(self._strictly_below())
            return math.fsum(self.le_energy) - (equal - tied) * self.low**2
        inside = self.ordered[: count - self.le].astype(np.float64)
        return math.fsum(self.le_energy) + float(np.einsum("i,i->", inside, inside))

    def energies(self, count: int) -> list[float]:
        """As :meth:`energy`, for each tensor."""
        if count == 0:
            return [0.0] * len(self.tensors)
        if count < self.le:
            tied = self._tied(count)
            below = self._strictly_below()
            counts = zip(self.le_energy, self.le_counts, below, tied, strict=True)
            return [energy - (le - less - t) * self.low**2 for energy, le, less, t in counts]
        if count == self.le:
            return list(self.le_energy)
        magnitude, equals = self._split(count)
        energies = []
        spans = zip(self.le_energy, self.starts, self.starts[1:], strict=False)
        for energy, start, stop in spans:
            part = self.magnitude[start:stop]
            equal = min(equals, int(np.count_nonzero(part == magnitude)))
            inside = part[part < magnitude].astype(np.float64)
            energies.append(
                energy + float(np.einsum("i,i->", inside, inside)) + equal * float(magnitude) ** 2
            )
            equals -= equal
        return energies

    def cut(self, count: int) -> Cut:
        """The place in the order below which exactly ``count`` weights lie."""
        if count == 0:
            return Cut(0.0, 0, 0)
        if count >= self.total:
            return Cut(math.inf, 0, 0)
        if count < self.le or (count == self.le and self._below_counts is not None):
            tied = self._tied(count)
            last = max((i for i, t in enumerate(tied) if t), default=None)
            if last is None:  # nothing of the equals is cut
                return Cut(self.low, 0, 0)
            return Cut(self.low, last, self._tie_index(last, tied[last]) + 1)
        if count == self.le:  # everything at the lower end is cut, nothing above it
            return Cut(self.low, len(self.tensors), 0)
        magnitude, equals = self._split(count)
        tensor, index = self._place(int(np.flatnonzero(self.magnitude == magnitude)[equals - 1]))
        return Cut(float(magnitude), tensor, index + 1)

    def _tie_index(self, tensor: int, number: int) -> int:
        """Index of the ``number``-th weight of a tensor that equals the lower end."""
        values = self.tensors[tensor]
        for at in range(0, len(values), blocks.BLOCK):
            hits = (values[at : at + blocks.BLOCK].abs().double() == self.low).nonzero().squeeze(1)
            if number <= len(hits):
                return at + int(hits[number - 1])
            number -= len(hits)
        raise RuntimeError("weights changed during the selection")


class _Block(NamedTuple):
    count: int  # type: ignore[assignment]  # hides methods of tuples that nobody calls
    energy: float
    index: np.ndarray  # type: ignore[assignment]
    magnitude: np.ndarray


def _scan_compiled(compiled_scan, block: np.ndarray, low, high, scratch: Scratch) -> _Block:
    index, magnitude = scratch.index, scratch.magnitude
    count, energy, taken = compiled_scan(block, low, high, index, magnitude)
    return _Block(count, energy, index[:taken].copy(), magnitude[:taken].copy())


def _scan_numpy(block: np.ndarray, low, high, scratch: Scratch) -> _Block:
    size = len(block)
    magnitude = scratch.magnitude[:size]
    below, inside = scratch.below[:size], scratch.inside[:size]
    np.abs(block, out=magnitude)
    np.less_equal(magnitude, low, out=below)
    count = int(np.count_nonzero(below))
    np.less_equal(magnitude, high, out=inside)
    np.not_equal(inside, below, out=inside)
    index = np.flatnonzero(inside)
    taken = magnitude[index]
    # the squares of what is above are those of the bound: cheaper than a product with a mask
    bound = max(low, low.dtype.type(0))
    np.clip(magnitude, -bound, bound, out=magnitude)
    energy = _sum_of_squares(scratch.magnitude, size) - float(bound) ** 2 * (size - count)
    return _Block(count, max(energy, 0.0) if energy == energy else energy, index, taken)


def _sum_of_squares(values: np.ndarray, size: int) -> float:
    """Of the first ``size`` values; what follows them up to a full row is overwritten.

    Row by row: a library's dot product of short vectors does not depend on its number of threads.
    """
    stop = -(-size // ROW) * ROW
    values[size:stop] = 0
    rows = values[:stop].reshape(-1, ROW)
    return float(np.matmul(rows[:, None, :], rows[:, :, None]).sum(dtype=np.float64))


def _scan_torch(block: torch.Tensor, low, high, dtype) -> _Block:
    kind = torch_kind(dtype)
    magnitude = block.to(kind).abs()
    below = magnitude <= float(low)
    index = (magnitude <= float(high)).logical_xor_(below).nonzero().squeeze(1)
    taken = magnitude[index]
    magnitude *= below
    energy = torch.dot(magnitude, magnitude)
    # one transfer for all numbers of the block
    numbers = torch.stack((below.sum().double(), energy.double())).tolist()
    return _Block(int(numbers[0]), numbers[1], index.cpu().numpy(), taken.cpu().numpy())
