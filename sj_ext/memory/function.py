"""One autograd function for a segment: bits go in, and gradients come out of a recomputation.

Forwards, a batch that comes in one slice is run as it is. In several slices, the modules before
the batch norm run once for its statistics and once more for the output.

Backwards, one slice is run again with its graph. In several slices, a first pass pushes the
gradient down to the output of the batch norm and sums up what the norm's gradient needs of the
whole batch, and a second pass goes all the way, slice by slice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..layer.temporal_reversible.replay import AutocastState
from ..layer.temporal_reversible.stand_ins import StandIns
from .planes import Held, hold_slices, slice_sizes
from .segment import Records, Segment
from .statistics import GradientSums, StatisticsSums, update_running

__all__ = ["run_segment"]


def run_segment(segment: Segment, x: torch.Tensor, slices: int) -> torch.Tensor:
    """The output of a segment, whose graph is one node that holds bits.

    Args:
        segment: its neurons have just been reset.
        x: the input of its first module.
        slices: into how many slices to cut the batch, at most.
    """
    sizes = tuple(slice_sizes(x.shape[segment.batch_axis], slices))
    forward = _Forward(segment, sizes, _held_input(segment, x, sizes))
    out: torch.Tensor = _Compact.apply(forward, x, *segment.parameters())
    last = len(segment.steps) - 1
    if segment.steps[last].kind == "neuron":
        spikes = [forward.records.spikes[last, part] for part in range(len(sizes))]
        _remember(out, segment.batch_axis, sizes, spikes)
    segment.spend()
    return out


def _held_input(segment: Segment, x: torch.Tensor, sizes: tuple[int, ...]) -> list[Held | None]:
    if segment.leads_with_bits:
        return [None] * len(sizes)
    axis = segment.batch_axis
    version, known_axis, known_sizes, known = getattr(x, _KNOWN, (None, None, None, []))
    if (version, known_axis, known_sizes) == (x._version, axis, sizes):
        return list(known)
    held = hold_slices(x, axis, sizes, segment.reads_every)
    if x.grad_fn is not None and all(part.packed for part in held):
        _remember(x, axis, sizes, held)
    return list(held)


_KNOWN = "_sj_ext_known"


def _remember(x: torch.Tensor, axis: int, sizes: tuple[int, ...], held: list[Held]) -> None:
    """Leave with a tensor how it is held already, so that others need not hold it again."""
    setattr(x, _KNOWN, (x._version, axis, sizes, held))


class _Compact(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: _Forward, x: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.autocast = AutocastState(x.device.type)
        ctx.segment, ctx.sizes = forward.segment, forward.sizes
        ctx.like = x.shape, x.dtype, x.device
        ctx.modes = [module.training for module in forward.segment.modules]
        ctx.parameters = parameters  # saved tensors need not come back as the same objects
        out = forward.run(x)
        torch.clear_autocast_cache()  # casts made here know of no gradient
        ctx.records = forward.records.without_tensors()
        ctx.save_for_backward(*parameters, *forward.records.tensors())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = _saved_tensors(ctx)
        count = len(ctx.parameters)
        records = ctx.records.with_tensors(saved[count:])
        stand_ins = StandIns(ctx.segment.modules, ctx.parameters, saved[:count])
        with stand_ins.in_place(), ctx.autocast.again(), _in_modes(ctx.segment, ctx.modes):
            needs = ctx.needs_input_grad[1]
            run = _Backward(ctx.segment, ctx.sizes, records, ctx.like, needs, stand_ins.leaves)
            run.run(grad)
        return None, run.grad_x, *run.grads


def _saved_tensors(ctx: Any) -> tuple[torch.Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(
            f"{ctx.segment.name} (sj_ext.memory.compact): backward through the same forward pass a "
            "second time, after its records were freed. Pass retain_graph=True to the first one"
        ) from error


@contextlib.contextmanager
def _in_modes(segment: Segment, modes: Sequence[bool]) -> Iterator[None]:
    """The modules in training or evaluation mode as they were in the forward pass."""
    now = [module.training for module in segment.modules]
    try:
        for module, mode in zip(segment.modules, modes, strict=True):
            module.training = mode
        yield
    finally:
        for module, mode in zip(segment.modules, now, strict=True):
            module.training = mode


class _Forward:
    """One forward pass over all slices."""

    def __init__(self, segment: Segment, sizes: Sequence[int], inputs: list[Held | None]):
        self.segment, self.sizes = segment, sizes
        self.records = Records(inputs, segment.memories())

    def run(self, x: torch.Tensor) -> torch.Tensor:
        segment, axis = self.segment, self.segment.batch_axis
        parts = list(x.split(list(self.sizes), axis))
        place = segment.norm_place
        if place is not None and len(parts) > 1:
            self._take_statistics(parts, place)
        if len(parts) == 1:
            out = segment.forwards(x, 0, len(segment.steps), 0, self.records)
            return out.clone() if out is x else out
        return self._joined(parts, axis)

    def _joined(self, parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
        out: torch.Tensor | None = None
        start = 0
        for part, x in enumerate(parts):
            y = self.segment.forwards(x, 0, len(self.segment.steps), part, self.records)
            if out is None:
                shape = list(y.shape)
                shape[axis] = sum(self.sizes)
                out = y.new_empty(shape)
            out.narrow(axis, start, y.shape[axis]).copy_(y)
            start += y.shape[axis]
        assert out is not None  # there is a slice
        return out

    def _take_statistics(self, parts: Sequence[torch.Tensor], place: int) -> None:
        sums = StatisticsSums()
        step = self.segment.steps[place]
        norm: Any = step.module
        for part, x in enumerate(parts):
            z = self.segment.forwards(x, 0, place, part, self.records)
            sums.add(step.fold(z))
            dtype = z.dtype
        if norm.weight is not None:
            dtype = norm.weight.dtype
        self.records.statistics = sums.result(dtype)
        update_running(norm, self.records.statistics)


class _Backward:
    """One backward pass over all slices."""

    def __init__(
        self,
        segment: Segment,
        sizes: Sequence[int],
        records: Records,
        like: tuple[torch.Size, torch.dtype, torch.device],
        needs: bool,
        leaves: Sequence[torch.Tensor],
    ):
        self.segment, self.sizes, self.records = segment, sizes, records
        self.shape, self.dtype, self.device = like
        self.needs = needs
        self.leaves = leaves
        self.axis = segment.batch_axis
        self.grads: list[torch.Tensor | None] = [None] * len(leaves)
        self.grad_x: torch.Tensor | None = None

    def run(self, grad: torch.Tensor) -> None:
        grads = grad.split(list(self.sizes), self.axis)
        place = self.segment.norm_place
        if place is None or self.records.statistics is None:
            for part, g in enumerate(grads):
                x = self._input(part)
                with torch.enable_grad():
                    y = self.segment.again(x, 0, len(self.segment.steps), part, self.records)
                self._keep(part, self._push(y, x, g))
            return
        sums = GradientSums()
        for part, g in enumerate(grads):
            standardised, below = self._down_to_norm(part, g, place, first=True)
            sums.add(below, standardised)
        self._keep_norm(place, sums)
        for part, g in enumerate(grads):
            self._through_norm(part, g, place, sums)

    def _through_norm(self, part: int, g: torch.Tensor, place: int, sums: GradientSums) -> None:
        step, statistics = self.segment.steps[place], self.records.statistics
        norm: Any = step.module
        assert statistics is not None
        x = self._input(part)
        with torch.enable_grad():
            z = self.segment.again(x, 0, place, part, self.records)
        standardised, below = self._down_to_norm(part, g, place, first=False, z=z.detach())
        dz = statistics.grad_input(norm, below, standardised, sums)
        if z.requires_grad:
            self._keep(part, self._push(z, x, step.unfold(dz, z)))

    def _down_to_norm(
        self,
        part: int,
        g: torch.Tensor,
        place: int,
        first: bool,
        z: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm's standardised input and the gradient of its output, both ``[N, C, *]``."""
        segment, statistics = self.segment, self.records.statistics
        step = segment.steps[place]
        norm: Any = step.module
        assert statistics is not None
        with torch.no_grad():
            if z is None:
                start = 1 if segment.steps[0].kind == "neuron" else 0
                x = self.records.spikes[0, part].get() if start else self._input(part)
                z = segment.again(x, start, place, part, self.records)
            folded = step.fold(z)
            standardised = statistics.standardise(norm, folded)
            b = step.unfold(statistics.normalise(norm, folded), z)
        if place + 1 == len(segment.steps):
            return standardised, step.fold(g)
        b.requires_grad_()
        with torch.enable_grad():
            y = segment.again(b, place + 1, len(segment.steps), part, self.records)
        below = self._push(y, b, g, parameters=first)
        assert below is not None
        return standardised, step.fold(below)

    def _input(self, part: int) -> torch.Tensor:
        held = self.records.inputs[part]
        if held is None:
            shape = list(self.shape)
            shape[self.axis] = self.sizes[part]
            x = torch.zeros(shape, dtype=self.dtype, device=self.device)
        else:
            x = held.get().detach()
        return x.requires_grad_(self.needs)

    def _push(
        self, y: torch.Tensor, x: torch.Tensor, grad: torch.Tensor, parameters: bool = True
    ) -> torch.Tensor | None:
        """Push a gradient from ``y`` to ``x`` and, if asked for, into the parameters' sums."""
        places = [i for i, leaf in enumerate(self.leaves) if leaf.requires_grad] * parameters
        sources = [self.leaves[i] for i in places] + [x] * x.requires_grad
        if not sources or not y.requires_grad:
            return None
        found = list(torch.autograd.grad(y, sources, grad.to(y.dtype), allow_unused=True))
        below = found.pop() if x.requires_grad else None
        for i, g in zip(places, found, strict=True):
            self._add(i, g)
        return below

    def _add(self, i: int, g: torch.Tensor | None) -> None:
        sofar = self.grads[i]
        if g is not None:
            self.grads[i] = g if sofar is None else sofar.add_(g)

    def _keep(self, part: int, below: torch.Tensor | None) -> None:
        """Put the gradient of a slice of the input in its place."""
        if not self.needs:
            return
        if len(self.sizes) == 1:
            self.grad_x = below
            return
        if self.grad_x is None:
            self.grad_x = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        if below is not None:
            start = sum(self.sizes[:part])
            self.grad_x.narrow(self.axis, start, self.sizes[part]).copy_(below)

    def _keep_norm(self, place: int, sums: GradientSums) -> None:
        norm: Any = self.segment.steps[place].module
        for parameter, total in ((norm.weight, sums.product), (norm.bias, sums.grad)):
            for i, leaf in enumerate(self.leaves):
                if parameter is leaf and leaf.requires_grad and isinstance(total, torch.Tensor):
                    self._add(i, total.to(leaf.dtype))
