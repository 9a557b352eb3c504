"""A trunk as one node of the autograd graph, and its blocks undone from the last to the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..layer.temporal_reversible.replay import AutocastState
from ..layer.temporal_reversible.stand_ins import StandIns
from .backward import SegmentBackward, concatenated
from .function import in_modes, saved_tensors
from .segment import Records, Segment
from .trunk import Block, Part, TrunkForward, without_tensors

__all__ = ["run_trunk"]


def run_trunk(forward: TrunkForward, stream: list[torch.Tensor]) -> torch.Tensor:
    """The output of a trunk, whose graph is one node that holds bits.

    Args:
        forward: its blocks.
        stream: the stream that goes in, alone in a list, so that it can go once it was read.
    """
    x = stream[0] if stream[0].requires_grad else None  # autograd would hold it for the call
    forward.device = stream[0].device
    out: torch.Tensor = _Trunk.apply(forward, stream, x, *forward.parameters())
    for block in forward.blocks:
        for segment in block.segments:
            segment.spend()
    return out


class _Trunk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forward: TrunkForward,
        stream: list[torch.Tensor],
        x: torch.Tensor | None,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.autocast = AutocastState(forward.device.type)
        ctx.modules, ctx.parameters = forward.modules, parameters
        ctx.modes = [module.training for module in ctx.modules]
        out = forward.run(stream)
        torch.clear_autocast_cache()  # casts made here know of no gradient
        tensors = [block.tensors() for block in forward.blocks]
        ctx.counts = [len(own) for own in tensors]
        ctx.sizes, ctx.axis = forward.sizes, forward.axis
        ctx.blocks = without_tensors(forward.blocks)
        forward.blocks[:] = ctx.blocks  # what is on record is autograd's to free
        ctx.save_for_backward(*parameters, *(tensor for own in tensors for tensor in own))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        name = f"{ctx.blocks[0].segments[0].name} ... {ctx.blocks[-1].segments[-1].name}"
        saved = list(saved_tensors(ctx, name))
        alone = _let_go(ctx)
        count = len(ctx.parameters)
        stand_ins = StandIns(ctx.modules, ctx.parameters, saved[:count])
        tensors = saved[count:]
        del saved
        blocks: list[Block] = []
        for block, own in zip(ctx.blocks, ctx.counts, strict=True):
            blocks.append(block.with_tensors(tensors[:own]))
            del tensors[:own]
        with stand_ins.in_place(), ctx.autocast.again(), in_modes(ctx.modules, ctx.modes):
            undoing = _Undoing(blocks, ctx.sizes, ctx.axis, stand_ins.leaves, alone)
            grad_x = undoing.run(grad, ctx.needs_input_grad[2])
        return None, None, grad_x, *undoing.grads


def _let_go(ctx: Any) -> bool:
    """Free what autograd saved, so that a block's goes once it is undone; False if it stays."""
    # both private to PyTorch, which frees the buffers of its compiled graphs so
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    if keeps_graph is None or keeps_graph() or not hasattr(ctx, "maybe_clear_saved_tensors"):
        return False
    ctx.maybe_clear_saved_tensors()
    return True


class _Undoing:
    """The blocks, from the last to the first.

    Args:
        blocks: with their records; each is let go once it is undone.
        sizes: of the slices.
        axis: of the batch.
        leaves: stand-ins of all parameters.
        alone: whether nobody else has the records.
    """

    def __init__(
        self,
        blocks: list[Block],
        sizes: Sequence[int],
        axis: int,
        leaves: Sequence[torch.Tensor],
        alone: bool,
    ):
        self.alone = alone
        self.blocks, self.sizes, self.axis, self.leaves = blocks, sizes, axis, leaves
        self.grads: list[torch.Tensor | None] = [None] * len(leaves)
        #: the stream before the block that is undone, where it is known
        self.stream: torch.Tensor | None = None
        self.owns_stream = False
        self.device = torch.device("cpu")

    @property
    def _parts(self) -> range:
        return range(len(self.sizes))

    def run(self, grad: torch.Tensor, needs: bool) -> torch.Tensor | None:
        """The gradient of the stream that goes in; ``needs`` tells whether it is asked for."""
        g, own = grad, False
        self.device = grad.device
        while self.blocks:
            block = self.blocks.pop()
            asked = needs or bool(self.blocks)
            if block.kept is not None:
                # the first is the user's own
                self.stream, self.owns_stream = block.kept, self.alone and bool(self.blocks)
            elif not block.rebuilt:
                self.stream = None
            if block.residual:
                g, own = self._residual(block, g, own)
            else:
                found = self._other(block, g, asked)
                if found is None:
                    if asked:
                        raise AssertionError("a stream with a gradient has no gradient")
                    return None
                g, own = found, len(self.sizes) > 1
        return g if needs else None

    def _residual(self, block: Block, g: torch.Tensor, own: bool) -> tuple[torch.Tensor, bool]:
        # spelt out: the gradient of the sum is the shortcut's, and what the branch sends is added
        first, below = self._down(block, block.main, 0, g, rebuild=block.rebuilt)
        if g.dtype != block.dtype or not own:
            g = g.to(block.dtype, copy=True)
        parts = below.split(list(self.sizes), self.axis) if below is not None else None
        for part in self._parts:
            x = g.narrow(self.axis, sum(self.sizes[:part]), self.sizes[part])
            d = first.through(part, x if parts is None else parts[part])
            if d is not None:
                x.add_(d)
        return g, True

    def _other(self, block: Block, g: torch.Tensor, needs: bool) -> torch.Tensor | None:
        """A block that adds a shortcut of its own to its branch, or nothing."""
        place = int(block.lead is not None)
        firsts = [self._down(block, block.main, place, g, needs=needs or place > 0)]
        if block.shortcut:
            place += len(block.main)
            firsts.append(
                self._down(block, block.shortcut, place, g, needs=needs or block.lead is not None)
            )
        splits = [
            (first, (g if below is None else below).split(list(self.sizes), self.axis))
            for first, below in firsts
        ]

        def stream_grad(part: int, parameters: bool = True) -> torch.Tensor | None:
            total: torch.Tensor | None = None
            for first, parts in splits:
                d = first.through(part, parts[part], parameters)
                if d is not None:
                    total = d if total is None else total + d
            return total

        if block.lead is None:
            return concatenated(stream_grad, self.sizes, self.axis)
        return self._lead(block, stream_grad, needs)

    def _lead(self, block: Block, stream_grad: Any, needs: bool) -> torch.Tensor | None:
        """The gradient through a lead, whose output is never whole."""
        assert block.lead is not None
        lead = SegmentBackward(
            block.lead,
            block.records[0],
            self._lead_input(block),
            needs,
            self.leaves,
            self.grads,
        )

        def of_output(part: int, parameters: bool = True) -> torch.Tensor:
            d = stream_grad(part, parameters)
            return d.sum(0, keepdim=True) if block.times > 1 else d

        if len(self.sizes) == 1 or lead.place is None:
            return concatenated(
                lambda part: lead.through(part, of_output(part)), self.sizes, self.axis
            )
        for part in self._parts:
            lead.look(part, of_output(part))
        lead.settle()
        return concatenated(
            lambda part: lead.through(part, of_output(part, False)), self.sizes, self.axis
        )

    def _down(
        self,
        block: Block,
        branch: Sequence[Segment],
        place: int,
        g: torch.Tensor,
        rebuild: bool = False,
        needs: bool = True,
    ) -> tuple[SegmentBackward, torch.Tensor | None]:
        """Undo a branch but for its first segment, whose sums are settled.

        Returns:
            The first segment and the gradient of its output; None if that is ``g`` itself.
        """
        below: torch.Tensor | None = None
        for number in reversed(range(len(branch))):
            source = self._source(block, place + number, branch[number], number == 0)
            records = block.records[place + number]
            own = SegmentBackward(
                branch[number], records, source, needs or number > 0, self.leaves, self.grads
            )
            parts = (g if below is None else below).split(list(self.sizes), self.axis)
            if rebuild and number + 1 == len(branch):
                self._rebuild(own, number == 0)
            for part in self._parts:
                own.look(part, parts[part])
            own.settle()
            if number == 0:
                return own, below
            below = concatenated(_passing(own, parts), self.sizes, self.axis)
            assert below is not None  # it was asked for
        raise AssertionError("a branch has segments")

    def _rebuild(self, last: SegmentBackward, reads: bool) -> None:
        """Take the output of a branch off the stream, as it is come by or, if it must, at once.

        Args:
            last: the last segment of the branch.
            reads: whether it also reads the stream.
        """
        assert self.stream is not None
        if not self.owns_stream:
            self.stream, self.owns_stream = self.stream.clone(), True
        parts = self.stream.split(list(self.sizes), self.axis)

        def take_off(part: int, y: torch.Tensor) -> None:
            parts[part].sub_(y)

        if reads and not last.shows_output_first:
            for part in self._parts:
                take_off(part, last.output(part))
        else:
            last.seen = take_off

    def _source(self, block: Block, place: int, segment: Segment, first: bool) -> Part:
        records, likes = block.records[place], block.likes[place]
        stream = self._stream_of(block)

        def source(part: int) -> torch.Tensor:
            held = records.inputs[part]
            if held is not None:
                return held.get()
            if first and not segment.leads_with_bits:
                return stream(part)
            shape, dtype = likes[part]
            return torch.zeros(shape, dtype=dtype, device=self.device)

        return source

    def _stream_of(self, block: Block) -> Part:
        """Slices of the stream before a block: made by its lead, or the stream itself."""
        if block.lead is not None:
            lead, records, x = block.lead, block.records[0], self._lead_input(block)

            def made(part: int) -> torch.Tensor:
                with torch.no_grad():
                    y = lead.again(x(part), 0, len(lead.steps), part, records)
                return y.expand(block.times, *y.shape[1:]) if block.times > 1 else y

            return made

        def known(part: int) -> torch.Tensor:
            assert self.stream is not None
            return self.stream.narrow(self.axis, sum(self.sizes[:part]), self.sizes[part])

        return known

    @staticmethod
    def _lead_input(block: Block) -> Part:
        records: Records = block.records[0]

        def source(part: int) -> torch.Tensor:
            held = records.inputs[part]
            assert held is not None  # a lead has no neuron
            return held.get()

        return source


def _passing(own: SegmentBackward, parts: Sequence[torch.Tensor]) -> Part:
    def through(part: int) -> Any:
        return own.through(part, parts[part])

    return through
