"""One autograd function for a segment: bits go in, and gradients come out of a recomputation.

Forwards, a batch that comes in one slice is run as it is. In several slices, the modules before
the batch norm run once for its statistics and once more for the output.

Backwards, one slice is run again with its graph. In several slices, a first pass pushes the
gradient down to the output of the batch norm and sums up what the norm's gradient needs of the
whole batch, and a second pass goes all the way, slice by slice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..layer.temporal_reversible.replay import AutocastState
from ..layer.temporal_reversible.stand_ins import StandIns
from .backward import SegmentBackward, concatenated
from .planes import Held, hold_slices, slice_sizes
from .segment import Records, Segment
from .statistics import StatisticsSums, update_running

__all__ = ["in_modes", "run_segment", "saved_tensors", "take_statistics"]


def run_segment(
    segment: Segment, x: torch.Tensor, slices: int, keeps: bool = False
) -> torch.Tensor:
    """The output of a segment, whose graph is one node that holds bits.

    Args:
        segment: its neurons have just been reset.
        x: the input of its first module.
        slices: into how many slices to cut the batch, at most.
        keeps: whether it also holds the outputs of its weights.
    """
    sizes = tuple(slice_sizes(x.shape[segment.batch_axis], slices))
    forward = _Forward(segment, sizes, _held_input(segment, x, sizes), keeps)
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
        saved = saved_tensors(ctx, ctx.segment.name)
        count = len(ctx.parameters)
        records = ctx.records.with_tensors(saved[count:])
        stand_ins = StandIns(ctx.segment.modules, ctx.parameters, saved[:count])
        with stand_ins.in_place(), ctx.autocast.again(), in_modes(ctx.segment.modules, ctx.modes):
            grads: list[torch.Tensor | None] = [None] * count
            run = SegmentBackward(
                ctx.segment,
                records,
                _source(records, ctx.segment.batch_axis, ctx.sizes, *ctx.like),
                ctx.needs_input_grad[1],
                stand_ins.leaves,
                grads,
            )
            grad_x = _whole(run, grad, ctx.sizes)
        return None, grad_x, *grads


def _whole(run: SegmentBackward, grad: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor | None:
    """The gradient of the input of a segment in all slices."""
    axis = run.segment.batch_axis
    parts = grad.split(list(sizes), axis)
    for part, g in enumerate(parts):
        run.look(part, g)
    run.settle()
    return concatenated(lambda part: run.through(part, parts[part]), sizes, axis)


def _source(
    records: Records,
    axis: int,
    sizes: Sequence[int],
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[int], torch.Tensor]:
    """Slices of the input of a segment, from its records; zeros where bits are all it takes."""

    def source(part: int) -> torch.Tensor:
        held = records.inputs[part]
        if held is not None:
            return held.get()
        own = list(shape)
        own[axis] = sizes[part]
        return torch.zeros(own, dtype=dtype, device=device)

    return source


def saved_tensors(ctx: Any, name: str) -> tuple[torch.Tensor, ...]:
    """What autograd saved, or why it is gone."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(
            f"{name} (sj_ext.memory.compact): backward through the same forward pass a "
            "second time, after its records were freed. Pass retain_graph=True to the first one"
        ) from error


@contextlib.contextmanager
def in_modes(modules: Sequence[nn.Module], modes: Sequence[bool]) -> Iterator[None]:
    """The modules in training or evaluation mode as they were in the forward pass."""
    now = [module.training for module in modules]
    try:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        yield
    finally:
        for module, mode in zip(modules, now, strict=True):
            module.training = mode


class _Forward:
    """One forward pass over all slices."""

    def __init__(
        self, segment: Segment, sizes: Sequence[int], inputs: list[Held | None], keeps: bool
    ):
        self.segment, self.sizes = segment, sizes
        self.records = Records(inputs, segment.memories(), keeps)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        segment, axis = self.segment, self.segment.batch_axis
        parts = list(x.split(list(self.sizes), axis))
        if len(parts) > 1:
            take_statistics(segment, lambda part: parts[part], self.sizes, self.records)
        out = concatenated(
            lambda part: segment.run(parts[part], part, self.records), self.sizes, axis
        )
        assert out is not None  # there is a slice
        return out.clone() if out is x else out


def take_statistics(
    segment: Segment,
    source: Callable[[int], torch.Tensor],
    sizes: Sequence[int],
    records: Records,
    times: int = 1,
) -> None:
    """The statistics of the batch norm of a segment, and a step of its running ones.

    Args:
        segment: nothing happens if it has no such norm.
        source: from the number of a slice to its input.
        sizes: of the slices.
        records: its statistics are set.
        times: how often every element that is seen would be there.
    """
    place = segment.norm_place
    if place is None:
        return
    step, sums = segment.steps[place], StatisticsSums()
    norm: Any = step.module
    for part in range(len(sizes)):
        z = segment.forwards(source(part), 0, place, part, records)
        sums.add(step.fold(z))
        dtype = z.dtype
    if norm.weight is not None:
        dtype = norm.weight.dtype
    records.statistics = sums.result(dtype)
    update_running(norm, records.statistics, times)
