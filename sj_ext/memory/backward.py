"""The backward pass of one segment, slice by slice, from its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .segment import Records, Segment
from .statistics import GradientSums

__all__ = ["SegmentBackward", "concatenated"]


class SegmentBackward:
    """One segment's gradients.

    In one slice, the segment is run again with its graph. In several, :meth:`look` pushes the
    gradient of every slice down to the output of the batch norm and sums up what the gradient of
    the norm needs of the whole batch, :meth:`settle` closes the sums, and :meth:`through` goes all
    the way.

    Args:
        segment: with stand-ins for its parameters in place.
        records: of its forward pass.
        source: from the number of a slice to the slice of the input of the first module.
        needs: whether the gradient of the input is asked for.
        leaves: stand-ins of all parameters.
        grads: what is added up for them, changed in place.
    """

    def __init__(
        self,
        segment: Segment,
        records: Records,
        source: Callable[[int], torch.Tensor],
        needs: bool,
        leaves: Sequence[torch.Tensor],
        grads: list[torch.Tensor | None],
    ):
        self.segment, self.records, self.source = segment, records, source
        self.needs, self.leaves, self.grads = needs, leaves, grads
        self.place = segment.norm_place if records.statistics is not None else None
        self.sums = GradientSums()
        #: called once with every slice of the output, on the way
        self.seen: Callable[[int, torch.Tensor], None] | None = None

    @property
    def shows_output_first(self) -> bool:
        """Whether :meth:`look` comes by the output, so that it is there before the input is."""
        return self.place is not None

    def look(self, part: int, g: torch.Tensor) -> None:
        """Count the gradient of a slice of the output in; nothing where there is no such norm."""
        if self.place is not None:
            standardised, below = self._down_to_norm(self.place, part, g, first=True)
            self.sums.add(below, standardised)

    def settle(self) -> None:
        """The gradients of the norm's own parameters, after all slices were looked at."""
        if self.place is None:
            return
        norm: Any = self.segment.steps[self.place].module
        for parameter, total in ((norm.weight, self.sums.product), (norm.bias, self.sums.grad)):
            for i, leaf in enumerate(self.leaves):
                if parameter is leaf and leaf.requires_grad and isinstance(total, torch.Tensor):
                    self._add(i, total.to(leaf.dtype))

    def through(self, part: int, g: torch.Tensor, parameters: bool = True) -> torch.Tensor | None:
        """The gradient of a slice of the input, from that of the output.

        Args:
            part: the number of the slice.
            g: the gradient of the output.
            parameters: whether the gradients of weights are added up.
        """
        if self.place is None:
            x = self._input(part)
            with torch.enable_grad():
                y = self.segment.again(x, 0, len(self.segment.steps), part, self.records)
            self._show(part, y)
            return self._push(y, x, g, parameters)
        return self._through_norm(self.place, part, g, parameters)

    def output(self, part: int) -> torch.Tensor:
        """A slice of the output, computed again without its graph."""
        with torch.no_grad():
            stop = len(self.segment.steps)
            x, start = self._latest(part, stop)
            return self.segment.again(x, start, stop, part, self.records)

    def _through_norm(
        self, place: int, part: int, g: torch.Tensor, parameters: bool
    ) -> torch.Tensor | None:
        step, statistics = self.segment.steps[place], self.records.statistics
        norm: Any = step.module
        assert statistics is not None
        x = self._input(part)
        with torch.enable_grad():
            z = self.segment.again(x, 0, place, part, self.records)
        standardised, below = self._down_to_norm(place, part, g, first=False, z=z.detach())
        dz = statistics.grad_input(norm, below, standardised, self.sums)
        return self._push(z, x, step.unfold(dz, z), parameters) if z.requires_grad else None

    def _down_to_norm(
        self,
        place: int,
        part: int,
        g: torch.Tensor,
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
                x, start = self._latest(part, place)
                z = segment.again(x, start, place, part, self.records)
            folded = step.fold(z)
            standardised = statistics.standardise(norm, folded)
            if place + 1 == len(segment.steps):
                if first and self.seen is not None:
                    self._show(part, step.unfold(statistics.normalise(norm, folded), z))
                return standardised, step.fold(g)
            b = step.unfold(statistics.normalise(norm, folded), z)
        b.requires_grad_()
        with torch.enable_grad():
            y = segment.again(b, place + 1, len(segment.steps), part, self.records)
        if first:
            self._show(part, y)
        below = self._push(y, b, g, parameters=first)
        assert below is not None
        return standardised, step.fold(below)

    def _show(self, part: int, y: torch.Tensor) -> None:
        if self.seen is not None:
            self.seen(part, y.detach())

    def _latest(self, part: int, stop: int) -> tuple[torch.Tensor, int]:
        """What to begin with where no gradient is asked for, and with which step."""
        return self.records.latest(part, stop) or (self._input(part), 0)

    def _input(self, part: int) -> torch.Tensor:
        return self.source(part).detach().requires_grad_(self.needs)

    def _push(
        self, y: torch.Tensor, x: torch.Tensor, grad: torch.Tensor, parameters: bool
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


def concatenated(
    parts: Callable[[int], torch.Tensor | None],
    sizes: Sequence[int],
    axis: int,
) -> torch.Tensor | None:
    """Slices, made one after the other, in one tensor; None stands for zeros, or for all of it."""
    if len(sizes) == 1:
        return parts(0)
    whole: torch.Tensor | None = None
    start = 0
    for part, size in enumerate(sizes):
        y = parts(part)
        if y is not None:
            if whole is None:
                shape = list(y.shape)
                shape[axis] = sum(sizes)
                whole = y.new_zeros(shape) if part else y.new_empty(shape)
            whole.narrow(axis, start, size).copy_(y)
        elif whole is not None:
            whole.narrow(axis, start, size).zero_()
        start += size
    return whole
