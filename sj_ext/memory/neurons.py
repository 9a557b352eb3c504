"""A host's neuron a second time: its own forward, but it fires where it fired before.

A neuron fires by calling its surrogate with what is above the threshold. In the forward pass a
stand-in looks on; in the recomputation another returns the recorded spikes with the surrogate's
gradient. So resets, and all that follows, see exactly the spikes of the forward pass, whatever the
rounding of the recomputed input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .. import host, neuron
from ..ops.windows import Window

__all__ = [
    "Looker",
    "Recorded",
    "Spent",
    "fires_by_surrogate",
    "memories_of",
    "needs_input",
    "recorded_window",
    "with_surrogate",
]

#: neurons whose gradient is a linear map of the spikes' gradient, given spikes and windows
_LINEAR = (
    host.neuron.IFNode,
    host.neuron.LIFNode,
    neuron.IMPIFNode,
    neuron.IMPLIFNode,
    neuron.TurnOffNode,
)


class Spent:
    """Stands in a neuron's memory for a potential that was not kept."""

    def __repr__(self) -> str:
        return (
            "<potential not kept by sj_ext.memory.compact: call functional.reset_net before the "
            "next forward pass>"
        )


class Looker(nn.Module):
    """Calls a surrogate and notes the steps it was called for, and its window where it has one."""

    def __init__(self, surrogate: Any, window: Window | None):
        super().__init__()
        self.surrogate = surrogate
        self.window = window
        self.elements = 0
        self.windows: list[torch.Tensor] = []

    def forward(self, above: torch.Tensor) -> torch.Tensor:
        self.elements += above.numel()
        if self.window is not None:
            self.windows.append(self.window.pack(above))
        return self.surrogate(above)


class Recorded(nn.Module):
    """Fires the recorded spikes, step after step, with the gradient of a surrogate.

    Args:
        spikes: ``[T, N, *]``.
        surrogate: what the neuron fires by.
        windows: what the calls of a :class:`Looker` packed.
        window: the window that was packed.
    """

    def __init__(
        self,
        spikes: torch.Tensor,
        surrogate: Any,
        windows: list[torch.Tensor] | None,
        window: Window | None,
    ):
        super().__init__()
        self.spikes = spikes.flatten()
        self.surrogate = surrogate
        self.windows = windows
        self.window = window
        self.place = 0
        self.calls = 0

    def forward(self, above: torch.Tensor) -> torch.Tensor:
        count = above.numel()
        spikes = self.spikes[self.place : self.place + count].view(above.shape).to(above.dtype)
        self.place += count
        self.calls += 1
        if self.windows is not None:
            return _Windowed.apply(above, spikes, self.windows[self.calls - 1], self.window)
        smooth = self.surrogate(above)
        return spikes + (smooth - smooth.detach())


class _Windowed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        above: torch.Tensor,
        spikes: torch.Tensor,
        packed: torch.Tensor,
        window: Window,
    ) -> torch.Tensor:
        ctx.packed, ctx.window = packed, window
        return spikes.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.window.apply(ctx.packed, grad), None, None, None


def recorded_window(node: Any) -> Window | None:
    """The window where one bit per element is the whole gradient of the node's surrogate."""
    return Window.of(node.surrogate_function)


def needs_input(node: Any) -> bool:
    """Whether the gradient depends on the input beyond the spikes and the windows."""
    if type(node) not in _LINEAR or recorded_window(node) is None:
        return True
    soft = getattr(node, "v_reset", None) is None
    return not (soft or node.detach_reset)


def memories_of(node: Any) -> dict[str, Any]:
    """What is in the node's memories now."""
    return dict(getattr(node, "_memories", {}))


def fires_by_surrogate(node: Any, x: torch.Tensor) -> bool:
    """Whether the node's spikes are what its surrogate returned, step after step, on ``x``.

    The node's memories are left as they were.
    """
    looker = _Keeper(node.surrogate_function)
    before = memories_of(node)
    try:
        with with_surrogate(node, looker):
            out = type(node).forward(node, x)
    finally:
        vars(node).get("_memories", {}).update(before)
    if not isinstance(out, torch.Tensor) or out.numel() != looker.elements:
        return False
    kept = torch.cat([part.flatten() for part in looker.kept])
    return bool(torch.equal(kept.to(out.dtype), out.flatten()))


class _Keeper(Looker):
    def __init__(self, surrogate: Any):
        super().__init__(surrogate, None)
        self.kept: list[torch.Tensor] = []

    def forward(self, above: torch.Tensor) -> torch.Tensor:
        fired = super().forward(above)
        self.kept.append(fired.detach())
        return fired


@contextlib.contextmanager
def with_surrogate(node: Any, stand_in: nn.Module) -> Iterator[None]:
    """``node`` firing by ``stand_in``."""
    own = node.surrogate_function
    place = node._modules if isinstance(own, nn.Module) else vars(node)
    place["surrogate_function"] = stand_in
    try:
        yield
    finally:
        place["surrogate_function"] = own
