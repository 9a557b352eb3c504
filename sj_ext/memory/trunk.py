"""Blocks around a stream as one autograd function, forwards.

The stream itself is not kept. Forwards, a block is added to it in place. Backwards, the gradient
of the stream is one tensor as well, and what a block sends down is added to it. A neuron that needs
the stream itself, since its surrogate is smooth, gets it rebuilt from the layer above,

.. math:: x_l = x_{l + 1} - F_l(\\text{spikes of } F_l),

where :math:`F_l` is computed from bits on record: rounding enters the argument of a derivative
and nothing else, and no spike can flip. Where the shape changes, or after 16 blocks, the stream is
kept.

What only a transition reads, as a stem makes it, is never whole: it is made again for every slice.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .backward import concatenated
from .function import take_statistics
from .neurons import needs_input
from .planes import Held, hold, repeats, slice_sizes
from .segment import Records, Segment
from .streams import Trunk

__all__ = ["Block", "Part", "TrunkForward", "blocks_of", "without_tensors"]

#: a stream is rebuilt over so many blocks at most, so that rounding cannot add up without bounds
_MOST_REBUILT = 16

Part = Callable[[int], torch.Tensor]


@dataclass
class Block:
    """One block with its segments, and what its forward pass leaves."""

    main: list[Segment]
    shortcut: list[Segment] | None
    lead: Segment | None = None
    #: records of the lead, the main branch and the shortcut, in this order
    records: list[Records] = field(default_factory=list)
    #: shape and dtype of every slice of the input of every segment
    likes: list[list[tuple[torch.Size, torch.dtype]]] = field(default_factory=list)
    #: how often the input of the lead says the same along axis 0
    times: int = 1
    #: whether the stream that goes in is kept
    keeps: bool = False
    kept: torch.Tensor | None = None
    #: whether the stream that goes in is rebuilt from the one that comes out
    rebuilt: bool = False
    #: the dtype of the stream that goes in
    dtype: torch.dtype = torch.float32

    @property
    def segments(self) -> list[Segment]:
        """All segments, as their records stand."""
        lead = [] if self.lead is None else [self.lead]
        return [*lead, *self.main, *(self.shortcut or ())]

    @property
    def residual(self) -> bool:
        """Whether the stream itself is added."""
        return self.shortcut == []

    @property
    def needs_stream(self) -> bool:
        """Whether a neuron needs the stream that goes in beyond its own spikes."""
        firsts = [branch[0].steps[0] for branch in (self.main, self.shortcut) if branch]
        return any(step.kind == "neuron" and needs_input(step.module) for step in firsts)

    def tensors(self) -> list[torch.Tensor]:
        """All that is on record."""
        found = [tensor for records in self.records for tensor in records.tensors()]
        return [*found, self.kept] if self.kept is not None else found

    def with_tensors(self, tensors: Any) -> Block:
        """The same with these in place."""
        rest = iter(tensors)
        records = [own.with_tensors(rest) for own in self.records]
        kept = next(rest) if self.keeps else None
        return dataclasses.replace(self, records=records, kept=kept)


def blocks_of(
    trunk: Trunk, segment_of: Callable[[Sequence[str]], Segment], leads: bool
) -> list[Block]:
    """The blocks of a trunk, in which, with ``leads``, what only a transition reads is its lead."""
    blocks: list[Block] = []
    for names in trunk.blocks:
        main = [segment_of(own) for own in names.main]
        shortcut = None if names.shortcut is None else [segment_of(own) for own in names.shortcut]
        lead = None
        if leads and shortcut and blocks and _can_lead(blocks[-1]):
            lead = blocks.pop().main[0]
        blocks.append(Block(main, shortcut, lead))
    return blocks


def _can_lead(block: Block) -> bool:
    quiet = all(step.kind != "neuron" for step in block.main[0].steps)
    return block.shortcut is None and block.lead is None and quiet


def plan(blocks: Sequence[Block]) -> set[int]:
    """Before which blocks the stream is kept; notes in the others whether it is rebuilt."""
    keep: set[int] = set()
    known, since = False, 0
    for i in reversed(range(len(blocks))):
        block = blocks[i]
        known = known and block.residual and since < _MOST_REBUILT
        since = since + 1 if known else 0
        block.rebuilt = known
        if block.needs_stream and block.lead is None and not known:
            keep.add(i)
            known, since = True, 0
    useful = False
    for block in blocks:
        useful = (useful and block.rebuilt) or block.needs_stream
        block.rebuilt = block.rebuilt and useful
    return keep


class TrunkForward:
    """One forward pass of a trunk.

    Args:
        blocks: without records.
        slices: into how many slices to cut the batch, at most.
        keeps: whether the outputs of weights are held, too.
    """

    def __init__(self, blocks: list[Block], slices: int, keeps: bool = False):
        self.blocks, self.slices, self.keeps = blocks, slices, keeps
        self.axis = blocks[0].main[0].batch_axis
        self.sizes: tuple[int, ...] = ()
        self.device = torch.device("cpu")

    @property
    def modules(self) -> list[nn.Module]:
        """The modules of all segments, each once."""
        found = (m for block in self.blocks for own in block.segments for m in own.modules)
        return list(dict.fromkeys(found))

    def parameters(self) -> list[nn.Parameter]:
        """Their parameters, each once."""
        return list(dict.fromkeys(p for m in self.modules for p in m.parameters()))

    def run(self, source: list[torch.Tensor]) -> torch.Tensor:
        """The stream after the last block; the one that goes in is taken out of its list."""
        stream, own = source.pop(), False
        self.sizes = tuple(slice_sizes(stream.shape[self.axis], self.slices))
        keep = plan(self.blocks)
        for i, block in enumerate(self.blocks):
            block.keeps, block.dtype = i in keep, stream.dtype
            block.kept = stream if block.keeps else None
            stream, own = self._block(block, stream, own and i not in keep)
        return stream

    def _block(self, block: Block, stream: torch.Tensor, own: bool) -> tuple[torch.Tensor, bool]:
        """The stream after a block, and whether it may be changed in place."""
        source = self._lead(block, stream) if block.lead is not None else self._part_of(stream)
        held: dict[tuple[int, tuple[int, ...]], Held] = {}
        main = self._branch(block, block.main, source, held)
        if not block.shortcut:
            own = own and not any(not part.packed for part in held.values())
            return self._onto(block, stream, main, own)
        shortcut = self._branch(block, block.shortcut, source, held)
        out = concatenated(lambda part: main(part) + shortcut(part), self.sizes, self.axis)
        assert out is not None  # there is a slice
        return out, True

    def _onto(
        self, block: Block, stream: torch.Tensor, main: Part, own: bool
    ) -> tuple[torch.Tensor, bool]:
        if not block.residual:
            out = concatenated(main, self.sizes, self.axis)
            assert out is not None  # there is a slice
            return out, len(self.sizes) > 1
        first = main(0)
        parts = stream.split(list(self.sizes), self.axis)
        if own and torch.result_type(stream, first) == stream.dtype:
            for part, x in enumerate(parts):
                x.add_(main(part) if part else first)
            return stream, True
        out = concatenated(
            lambda part: (main(part) if part else first) + parts[part], self.sizes, self.axis
        )
        assert out is not None  # there is a slice
        return out, True

    def _part_of(self, stream: torch.Tensor) -> Part:
        parts = stream.split(list(self.sizes), self.axis)
        return lambda part: parts[part]

    def _lead(self, block: Block, x: torch.Tensor) -> Part:
        """The stream that a lead makes of ``x``, every time again."""
        lead = block.lead
        assert lead is not None
        several = len(self.sizes) > 1
        block.times = len(x) if several and self.axis and repeats(x) else 1
        if block.times > 1:
            x = x[:1].clone()  # a view would hold all of it
        parts = x.split(list(self.sizes), self.axis)
        held = [hold(part, lead.reads_every) for part in parts]
        records = Records(list(held), {}, self.keeps)
        block.records.append(records)
        block.likes.append([(part.shape, part.dtype) for part in parts])
        if several:
            take_statistics(lead, lambda part: parts[part], self.sizes, records, block.times)

        def make(part: int) -> torch.Tensor:
            y = lead.run(parts[part], part, records, shown=True)
            return y.expand(block.times, *y.shape[1:]) if block.times > 1 else y

        if several:
            return make
        whole = make(0)  # its statistics are counted once
        return lambda part: whole

    def _branch(
        self,
        block: Block,
        segments: Sequence[Segment],
        source: Part,
        held: dict[tuple[int, tuple[int, ...]], Held],
    ) -> Part:
        """The output of a branch, slice by slice, each of them asked for once."""
        inputs: list[Held | None] = [None] * len(self.sizes)
        for place, segment in enumerate(segments):
            records = Records(inputs, segment.memories(), self.keeps)
            block.records.append(records)
            block.likes.append([])
            if place == 0:
                self._hold_stream(block, segment, source, records, held)
            source = self._noting(source, block.likes[-1])
            if len(self.sizes) > 1:
                take_statistics(segment, source, self.sizes, records)
            run = self._runner(segment, source, records, block.rebuilt)
            if place + 1 == len(segments):
                return run
            outputs = [self._output(segment, run(part), part, records) for part in self._parts]
            after = segments[place + 1]
            inputs = [None] * len(outputs) if after.leads_with_bits else list(outputs)
            source = self._getter(outputs)
        raise AssertionError("a branch has segments")

    @property
    def _parts(self) -> range:
        return range(len(self.sizes))

    def _hold_stream(
        self,
        block: Block,
        segment: Segment,
        source: Part,
        records: Records,
        held: dict[tuple[int, tuple[int, ...]], Held],
    ) -> None:
        """Hold what a first segment reads of the stream, unless it is there again backwards."""
        if segment.steps[0].kind == "neuron" or block.lead is not None:
            return
        for part in self._parts:
            every = segment.reads_every
            known = held.get((part, ())) or held.get((part, every))
            if known is None or not (known.packed or known.every == every):
                known = hold(source(part), every)
                held[part, () if known.packed else every] = known
            records.inputs[part] = known

    @staticmethod
    def _noting(source: Part, likes: list[tuple[torch.Size, torch.dtype]]) -> Part:
        def noting(part: int) -> torch.Tensor:
            x = source(part)
            if len(likes) == part:
                likes.append((x.shape, x.dtype))
            return x

        return noting

    @staticmethod
    def _runner(segment: Segment, source: Part, records: Records, shown: bool) -> Part:
        return lambda part: segment.run(source(part), part, records, shown)

    @staticmethod
    def _getter(outputs: Sequence[Held]) -> Part:
        return lambda part: outputs[part].get()

    @staticmethod
    def _output(segment: Segment, y: torch.Tensor, part: int, records: Records) -> Held:
        last = len(segment.steps) - 1
        return records.spikes[last, part] if segment.steps[last].kind == "neuron" else hold(y)


def without_tensors(blocks: Sequence[Block]) -> list[Block]:
    """The blocks without what autograd is to keep and free."""
    return [block.with_tensors(itertools.repeat(None)) for block in blocks]
