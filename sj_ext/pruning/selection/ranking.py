"""The weights at given ranks and the sums over those below them, in one pass."""

from __future__ import annotations

import functools
import itertools
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
        first, last = max(first, 1), max(last, 1)
        if self.total <= SMALL:
            self._scan(-1.0, np.inf)
            return
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

    # ---- the bracket -------------------------------------------------------------------------

    def _scan(self, low, high) -> None:
        low, high = self.dtype.type(low), self.dtype.type(high)
        scan = functools.partial(_scan_numpy, low, high)
        if self.total >= compiled.LARGE and (loop := compiled.scanner()) is not None:
            scan = functools.partial(_scan_compiled, loop, low, high)
        by_torch = functools.partial(_scan_torch, low, high, self.dtype)
        results = over_blocks(self.tensors, self.dtype, scan, by_torch)
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
        self.magnitude = np.concatenate(
            [np.empty(0, self.dtype), *(block.magnitude for _, block in results)]
        )
        self.ordered = np.sort(self.magnitude)
        self._found = [(start, block.index) for (_, start, _), block in results]
        self._below_counts: list[int] | None = None
        self._partitions: dict[int, _Partition] = {}
        bad = [i for i, energy in enumerate(self.le_energy) if not math.isfinite(energy)]
        if bad:
            raise NotFinite(bad)

    def _strictly_below(self) -> list[int]:
        """How many weights of each tensor are below the lower end; one more pass finds them.

        The rest of ``le_counts`` equals it.
        """
        if self._below_counts is None:
            counts = [0] * len(self.tensors)
            if self.low > 0:  # no magnitude is below 0
                by_numpy = functools.partial(_count_below, self.dtype.type(self.low))
                by_torch = functools.partial(_count_below_torch, self.low, torch_kind(self.dtype))
                found = over_blocks(self.tensors, self.dtype, by_numpy, by_torch)
                for (i, _, _), count in found:
                    counts[i] += count
            self._below_counts = counts
        return self._below_counts

    # ---- answers -----------------------------------------------------------------------------

    def covers(self, rank: int) -> bool:
        """Can :meth:`magnitude_at` answer for this rank?"""
        below = self.le if self._below_counts is None else sum(self._below_counts)
        return below < rank <= self.le + len(self.magnitude)

    def knows(self, count: int) -> bool:
        """Can the ``count`` smallest weights be told?"""
        return count == 0 or self.covers(count)

    def magnitude_at(self, rank: int) -> float:
        """The magnitude of rank ``rank``; infinity one past the last weight."""
        if rank == self.total + 1:
            return math.inf
        if not self.covers(rank):
            raise ValueError(f"rank must be in {self.first}..{self.last}, got {rank}")
        return self.low if rank <= self.le else float(self.ordered[rank - self.le - 1])

    def counts(self, count: int) -> list[int]:
        """How many of the ``count`` smallest weights each tensor holds."""
        part = self._partition(count)
        return [below + equal for below, equal in zip(part.below, part.equal, strict=True)]

    def energies(self, count: int) -> list[float]:
        """The sum of the squares of the ``count`` smallest weights, for each tensor."""
        return self._partition(count).squares()

    def energy(self, count: int) -> float:
        """As :meth:`energies`, of all tensors together."""
        return math.fsum(self._partition(count).squares())

    def cut(self, count: int) -> Cut:
        """The place in the order below which exactly ``count`` weights lie."""
        if count == 0:
            return Cut(0.0, 0, 0)
        if count >= self.total:
            return Cut(math.inf, 0, 0)
        part = self._partition(count)
        if part.all_equal:  # everything at this magnitude is cut, nothing above it
            return Cut(part.magnitude, len(self.tensors), 0)
        last = max((i for i, equal in enumerate(part.equal) if equal), default=None)
        if last is None:  # nothing of the equals is cut
            return Cut(part.magnitude, 0, 0)
        index = self._index_of_equal(last, part.equal[last], part.magnitude)
        return Cut(part.magnitude, last, index + 1)

    def _partition(self, count: int) -> _Partition:
        """The ``count`` smallest weights: those below the largest of them, and its equals."""
        if count not in self._partitions:
            if count == 0:
                none = [0] * len(self.tensors)
                part = _Partition(0.0, none, [0.0] * len(none), none, False)
            elif count < self.le:
                part = self._partition_at_low(count)
            elif count == self.le:
                none = [0] * len(self.tensors)
                part = _Partition(self.low, self.le_counts, self.le_energy, none, True)
            else:
                part = self._partition_inside(count)
            self._partitions[count] = part
        return self._partitions[count]

    def _partition_at_low(self, count: int) -> _Partition:
        below = self._strictly_below()
        if count < sum(below):
            raise ValueError(f"rank must be in {self.first}..{self.last}, got {count}")
        equals = [le - less for le, less in zip(self.le_counts, below, strict=True)]
        square = self.low**2
        energies = [e - equal * square for e, equal in zip(self.le_energy, equals, strict=True)]
        cut = _first(equals, count - sum(below))
        return _Partition(self.low, below, energies, cut, False)

    def _partition_inside(self, count: int) -> _Partition:
        magnitude = self.ordered[count - self.le - 1]
        below, energies, equals = list(self.le_counts), list(self.le_energy), []
        for i, (start, stop) in enumerate(itertools.pairwise(self.starts)):
            part = self.magnitude[start:stop]
            less = part[part < magnitude].astype(np.float64)
            below[i] += len(less)
            energies[i] += float(np.einsum("i,i->", less, less))
            equals.append(int(np.count_nonzero(part == magnitude)))
        cut = _first(equals, count - sum(below))
        return _Partition(float(magnitude), below, energies, cut, False)

    def _index_of_equal(self, tensor: int, number: int, magnitude: float) -> int:
        """Index of the ``number``-th weight of a tensor that has this magnitude."""
        if magnitude > self.low:  # inside the bracket: its place is known
            start, stop = self.starts[tensor : tensor + 2]
            hits = np.flatnonzero(self.magnitude[start:stop] == magnitude)
            inside = int(start) + int(hits[number - 1])
            for at, index in self._found:
                if inside < len(index):
                    return at + int(index[inside])
                inside -= len(index)
        values = self.tensors[tensor]
        for at in range(0, len(values), blocks.BLOCK):
            equal = values[at : at + blocks.BLOCK].abs().double() == magnitude
            places = equal.nonzero().squeeze(1)
            if number <= len(places):
                return at + int(places[number - 1])
            number -= len(places)
        raise RuntimeError("weights changed during the selection")


class _Partition(NamedTuple):
    """The smallest weights, by tensor: those below a magnitude, and the first of its equals."""

    magnitude: float
    below: list[int]
    energies: list[float]
    equal: list[int]
    #: all equals are cut, and ``below`` has them
    all_equal: bool

    def squares(self) -> list[float]:
        """The sum of the squares, for each tensor."""
        square = self.magnitude**2
        return [e + equal * square for e, equal in zip(self.energies, self.equal, strict=True)]


def _first(available: Sequence[int], count: int) -> list[int]:
    """``count`` of what is available, the first ones first."""
    taken = []
    for number in available:
        taken.append(min(number, count))
        count -= taken[-1]
    return taken


class _Block(NamedTuple):
    count: int  # type: ignore[assignment]  # hides methods of tuples that nobody calls
    energy: float
    index: np.ndarray  # type: ignore[assignment]
    magnitude: np.ndarray


def _scan_compiled(compiled_scan, low, high, block: np.ndarray, scratch: Scratch) -> _Block:
    index, magnitude = scratch.index, scratch.magnitude
    count, energy, taken = compiled_scan(block, low, high, index, magnitude)
    return _Block(count, energy, index[:taken].copy(), magnitude[:taken].copy())


def _scan_numpy(low, high, block: np.ndarray, scratch: Scratch) -> _Block:
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
    # up to a full row, row by row: a library's dot product of short vectors does not depend on its
    # number of threads
    stop = -(-size // ROW) * ROW
    scratch.magnitude[size:stop] = 0
    rows = scratch.magnitude[:stop].reshape(-1, ROW)
    squares = np.matmul(rows[:, None, :], rows[:, :, None])
    energy = float(squares.sum(dtype=np.float64)) - float(bound) ** 2 * (size - count)
    return _Block(count, max(energy, 0.0) if energy == energy else energy, index, taken)


def _scan_torch(low, high, dtype, block: torch.Tensor) -> _Block:
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


def _count_below(low, block: np.ndarray, scratch: Scratch) -> int:
    magnitude, below = scratch.magnitude[: len(block)], scratch.below[: len(block)]
    np.abs(block, out=magnitude)
    np.less(magnitude, low, out=below)
    return int(np.count_nonzero(below))


def _count_below_torch(low: float, kind: torch.dtype, block: torch.Tensor) -> int:
    return int((block.to(kind).abs() < low).sum())
