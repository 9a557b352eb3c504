"""Streams: which segments lead from one sum to the next, so that all of it can be one function.

A residual network hands a stream from block to block. A block adds what its main branch makes of
the stream to the stream itself, or to what a shortcut makes of it. Where nothing else reads the
streams in between, the blocks are one trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

__all__ = ["BlockNames", "Graph", "Trunk", "find_trunks", "is_sum"]

_NODE = "_sj_ext_node"
_SUMS = ("add", "add_", "__add__", "__iadd__", "__radd__")


def is_sum(func: Any, args: Sequence[Any], kwargs: Any) -> bool:
    """Whether a function of PyTorch adds two tensors of one shape and does nothing else."""
    return (
        getattr(func, "__name__", "") in _SUMS
        and len(args) == 2
        and not kwargs
        and all(isinstance(value, torch.Tensor) for value in args)
    )


@dataclass(frozen=True)
class BlockNames:
    """One block: names of the modules of each segment.

    Attributes:
        main: segments of the main branch, in order.
        shortcut: segments of the shortcut; none if the stream itself is added; None if nothing is.
        lead: a segment that makes the stream which only this block reads, again for every use.
    """

    main: tuple[tuple[str, ...], ...]
    shortcut: tuple[tuple[str, ...], ...] | None
    lead: tuple[str, ...] | None = None

    @property
    def segments(self) -> tuple[tuple[str, ...], ...]:
        """All segments of the block."""
        lead = () if self.lead is None else (self.lead,)
        return (*lead, *self.main, *(self.shortcut or ()))


@dataclass(frozen=True)
class Trunk:
    """Blocks that hand a stream on, and how their modules were called in the example run.

    Attributes:
        blocks: from the first to the last.
        parents: of each module, the value that it reads.
        values: of each module, the value that it makes.
        sums: which two values are added to which.
        input: the value that goes in.
        output: the value that comes out, a sum.
    """

    blocks: tuple[BlockNames, ...]
    parents: dict[str, int]
    values: dict[str, int]
    sums: dict[frozenset[int], int]
    input: int
    output: int

    @property
    def segments(self) -> list[tuple[str, ...]]:
        """All segments, block by block."""
        return [segment for block in self.blocks for segment in block.segments]


@dataclass
class _Node:
    """One value of the example run: what a module made, a sum, or something else."""

    unit: str | None
    parents: tuple[int, ...]
    consumers: list[int] = field(default_factory=list)
    touched: bool = False


class Graph:
    """Who makes and who reads what, in the example run."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        #: values that no module or sum made, which are not to be marked
        self._others: dict[int, tuple[int, torch.Tensor]] = {}
        self._own = object()

    def module(self, unit: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """``unit`` made ``out`` of ``x``."""
        self._add(unit, (x,), out)

    def total(self, args: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Two tensors were added."""
        if args[0] is args[1] or any(x.shape != out.shape for x in args):
            self.touch(args)
        else:
            self._add(None, args, out)

    def touch(self, values: Any) -> None:
        """Something else looked at these."""
        for value in tree_leaves(values):
            number = self._known(value) if isinstance(value, torch.Tensor) else None
            if number is not None:
                self.nodes[number].touched = True

    def _known(self, x: torch.Tensor) -> int | None:
        own, number = getattr(x, _NODE, (None, None))
        if own is not self._own:  # of another run
            return self._others.get(id(x), (None, x))[0]
        return number

    def _add(self, unit: str | None, args: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        parents = tuple(self._number(x) for x in args)
        for parent in parents:
            self.nodes[parent].consumers.append(len(self.nodes))
        setattr(out, _NODE, (self._own, len(self.nodes)))
        self.nodes.append(_Node(unit, parents))

    def _number(self, x: torch.Tensor) -> int:
        number = self._known(x)
        if number is None:
            number = len(self.nodes)
            self._others[id(x)] = number, x
            self.nodes.append(_Node(None, (), touched=True))
        return number

    def only_read_by(self, number: int, readers: Sequence[int]) -> bool:
        """Whether a value is read by these and by nothing else."""
        node = self.nodes[number]
        return not node.touched and sorted(node.consumers) == sorted(readers)


@dataclass(frozen=True)
class _Found:
    """A block, the stream that it reads, and the nodes that read it."""

    names: BlockNames
    stream: int
    readers: tuple[int, ...]


def find_trunks(graph: Graph, segments: Sequence[Sequence[str]]) -> list[Trunk]:
    """The longest trunks of ``segments``, modules that run once and in no other order."""
    return _Finder(graph, segments).trunks()


class _Finder:
    def __init__(self, graph: Graph, segments: Sequence[Sequence[str]]):
        self.graph = graph
        made: dict[str, list[int]] = {}
        for number, node in enumerate(graph.nodes):
            if node.unit is not None:
                made.setdefault(node.unit, []).append(number)
        self.made = {unit: numbers[0] for unit, numbers in made.items() if len(numbers) == 1}
        #: segments by the value that they end with
        self.ends: dict[int, tuple[str, ...]] = {
            self.made[names[-1]]: tuple(names)
            for names in segments
            if all(name in self.made for name in names)
        }

    def trunks(self) -> list[Trunk]:
        """From the last sum to the first."""
        blocks = {
            number: block
            for number, node in enumerate(self.graph.nodes)
            if len(node.parents) == 2 and (block := self._block(number)) is not None
        }
        inside: set[int] = set()
        found: list[Trunk] = []
        for output in sorted(blocks, reverse=True):
            if output in inside:
                continue
            chain, sums = [blocks[output]], [output]
            while (before := self._before(chain[0], blocks)) is not None:
                if chain[0].stream in blocks:
                    sums.append(chain[0].stream)
                    inside.add(chain[0].stream)
                chain.insert(0, before)
            found.append(self._trunk(chain, sums, output))
        return found[::-1]

    def _block(self, number: int) -> _Found | None:
        """The block that ends with a sum."""
        branches = [self._branch(parent) for parent in self.graph.nodes[number].parents]
        (main, stream), (shortcut, other) = sorted(branches, key=lambda b: -len(b[0]))
        if stream != other or not main:
            return None
        readers = [self.made[branch[0][0]] if branch else number for branch in (main, shortcut)]
        return _Found(BlockNames(tuple(main), tuple(shortcut)), stream, tuple(readers))

    def _branch(self, number: int) -> tuple[list[tuple[str, ...]], int]:
        """The segments that end in a value, and the value that the first of them reads."""
        branch: list[tuple[str, ...]] = []
        while number in self.ends and len(self.graph.nodes[number].consumers) == 1:
            if self.graph.nodes[number].touched:
                break
            branch.insert(0, self.ends[number])
            number = self._start(self.ends[number])
        return branch, number

    def _start(self, segment: tuple[str, ...]) -> int:
        return self.graph.nodes[self.made[segment[0]]].parents[0]

    def _before(self, block: _Found, blocks: dict[int, _Found]) -> _Found | None:
        """The block that makes the stream of this one, if nothing else reads it."""
        if not self.graph.only_read_by(block.stream, block.readers):
            return None
        if block.stream in blocks:
            return blocks[block.stream]
        if block.stream not in self.ends:
            return None
        segment = self.ends[block.stream]
        readers = (self.made[segment[0]],)
        return _Found(BlockNames((segment,), None), self._start(segment), readers)

    def _trunk(self, chain: list[_Found], sums: list[int], output: int) -> Trunk:
        units = [unit for block in chain for names in block.names.segments for unit in names]
        nodes = self.graph.nodes
        return Trunk(
            tuple(block.names for block in chain),
            {unit: nodes[self.made[unit]].parents[0] for unit in units},
            {unit: self.made[unit] for unit in units},
            {frozenset(nodes[number].parents): number for number in sums},
            chain[0].stream,
            output,
        )
