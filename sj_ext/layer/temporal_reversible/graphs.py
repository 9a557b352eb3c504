"""A level's graph that is kept in place of running the level again, with its spikes as bits.

What the layers of a level save for their backward pass goes through hooks of autograd: a tensor of
one value beside 0, as spikes and dropout's masks are, is kept as bits, anything else as it is. The
graph itself holds places only; the tensors are handed to autograd, which saves, offloads and frees
them like any others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from ...ops.layouts import Layout
from .dynamics import Call, run_level
from .stand_ins import StandIns, foreign_leaves

__all__ = ["Graph", "Graphs", "foreign_parameter"]

#: below this size a tensor is kept as it is
LEAST = 1024

#: elements that are compared at a time: scratch space that stays in the cache
AT_A_TIME = 2**16


@dataclass(frozen=True)
class Graph:
    """Where a kept graph of a level begins and ends; it holds no tensor."""

    output: GradientEdge
    dtype: torch.dtype
    #: None where no gradient is wanted
    below: GradientEdge | None
    above: GradientEdge | None


@dataclass(frozen=True)
class _Bits:
    """A tensor that is ``value`` where a packed mask is true and 0 elsewhere."""

    place: int
    layout: Layout
    dtype: torch.dtype
    value: float


class _Shelf:
    """Where the tensors stand that kept graphs saved; autograd has them between the passes."""

    def __init__(self, parameters: Sequence[torch.Tensor]):
        self.tensors: list[torch.Tensor] = []
        self._never_bits = {p.data_ptr() for p in parameters}
        self._watched: list[tuple[torch.Tensor, int]] = []

    def pack(self, tensor: torch.Tensor) -> int | _Bits:
        bits = None if tensor.data_ptr() in self._never_bits else _as_bits(tensor)
        if bits is None:
            self._watched.append((tensor, tensor._version))
            return self._put(tensor)
        layout, mask, value = bits
        return _Bits(self._put(layout.pack(mask)), layout, tensor.dtype, value)

    def unpack(self, handle: int | _Bits) -> torch.Tensor:
        if isinstance(handle, int):
            return self.tensors[handle]
        mask = handle.layout.unpack(self.tensors[handle.place])
        if handle.dtype == torch.bool:
            return mask
        tensor = mask.view(torch.uint8).to(handle.dtype)
        return tensor if handle.value == 1 else tensor.mul_(handle.value)

    def changed(self) -> bool:
        """Whether a tensor has been changed in place since it was kept; asked once a run."""
        changed = any(tensor._version != version for tensor, version in self._watched)
        self._watched = []
        return changed

    def _put(self, tensor: torch.Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1


class Graphs:
    """Runs levels so that their graphs stay.

    Args:
        modules: the levels that keep their graph.
        parameters: all parameters of the call, each once.
    """

    def __init__(self, modules: Sequence[nn.Module], parameters: Sequence[torch.Tensor]):
        self.stand_ins = StandIns(modules, parameters, parameters)
        self._shelf = _Shelf(parameters)
        self._start = torch.zeros((), requires_grad=True)  # all sources come from it
        self._checked: set[nn.Module] = set()

    def run(
        self,
        call: Call,
        span: range,
        level: int,
        sources: tuple[torch.Tensor, torch.Tensor | None],
        needs: tuple[bool, bool],
    ) -> tuple[torch.Tensor, Graph | None]:
        """F_level over a span, and its graph; None where nothing that it reads learns.

        Raises:
            RuntimeError: the level depends on a tensor whose gradient would be lost, or changes in
                place what its backward pass needs.
        """
        module = call.module(span, level)
        with torch.enable_grad(), saved_tensors_hooks(self._shelf.pack, self._shelf.unpack):
            below, above = sources
            if needs[0]:
                below = _Source.apply(self._start, below)
            if needs[1] and above is not None:
                above = _Source.apply(self._start, above)
            f = run_level(call, span, level, below, above)
        if self._shelf.changed():
            raise RuntimeError(
                f"levels: level {level} ({type(module).__name__}) changed a tensor in place that "
                "its backward pass needs (look for inplace=True)"
            )
        if not f.requires_grad:
            return f, None
        if module not in self._checked:
            self._checked.add(module)
            if foreign_leaves(f, [self._start, *self.stand_ins.leaves]):
                raise foreign_parameter(level, module)
        from_below = get_gradient_edge(below) if needs[0] else None
        from_above = get_gradient_edge(above) if needs[1] and above is not None else None
        return f.detach(), Graph(get_gradient_edge(f), f.dtype, from_below, from_above)

    def take_tensors(self) -> list[torch.Tensor]:
        """What the graphs saved; from here on they hold it no longer."""
        tensors, self._shelf.tensors = self._shelf.tensors, []
        return tensors

    @contextlib.contextmanager
    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within the context the graphs have their tensors."""
        self._shelf.tensors = list(tensors)
        try:
            yield
        finally:
            self._shelf.tensors = []


class _Source(torch.autograd.Function):
    """What a level reads, as the beginning of its graph: a node that holds no data."""

    @staticmethod
    def forward(ctx: Any, start: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None]:
        return None, None


def foreign_parameter(level: int, module: nn.Module) -> RuntimeError:
    """The error for a level that learns what it has not as a parameter."""
    return RuntimeError(
        f"levels: level {level} ({type(module).__name__}) depends on a tensor that "
        "requires a gradient and is neither one of its inputs nor one of its "
        "parameters, so its gradient would be lost; register it as a parameter of the "
        "level, or use memory='autograd'"
    )


def _as_bits(tensor: torch.Tensor) -> tuple[Layout, torch.Tensor, float] | None:
    """Layout, mask and value of a tensor of one value beside 0; None for any other."""
    if tensor.numel() < LEAST or tensor.layout != torch.strided:
        return None
    layout = Layout.like(tensor)
    ordered = layout.ordered(tensor)
    if not ordered.is_contiguous():
        return None
    if tensor.dtype == torch.bool:
        return layout, tensor, 1.0
    if not tensor.is_floating_point():
        return None
    flat = ordered.view(-1)
    value = flat[:AT_A_TIME].max().item() or flat.max().item()
    if not 0 < value < float("inf"):
        return None
    mask = torch.empty(ordered.shape, dtype=torch.bool, device=tensor.device)
    pieces = zip(mask.view(-1).split(AT_A_TIME), flat.split(AT_A_TIME), strict=True)
    if not all(_fill(part, values, value) for part, values in pieces):
        return None
    return layout, layout.restored(mask), value


def _fill(mask: torch.Tensor, values: torch.Tensor, value: float) -> bool:
    """Writes where ``values`` are not 0 to ``mask``; whether they all are ``value`` there."""
    mask.copy_(values)
    again = mask.view(torch.uint8).to(values.dtype)
    # a difference of 0 everywhere, which also no NaN has: 3 times as fast on a CPU as torch.equal
    low, high = torch.aminmax((again if value == 1 else again.mul_(value)).sub_(values))
    return low.item() == 0 == high.item()
