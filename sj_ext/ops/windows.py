"""Rectangular windows: surrogate gradients whose whole backward pass is one bit per element."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..surrogate import ClosedRect, Rect
from .bits import keep_where_bits, pack_bits

__all__ = ["Window"]

# Elements that are compared at a time on a CPU: scratch space that stays in the cache.
_AT_A_TIME = 2**17


class Window(NamedTuple):
    r"""The gradient of a step: ``alpha`` where :math:`|x| < 1 / (2 alpha)`, 0 elsewhere.

    Here :math:`x = u - v_{th}`; a closed window has its two ends inside as well.
    """

    alpha: float
    closed: bool = False

    @classmethod
    def of(cls, surrogate_function: Callable[..., object]) -> Window | None:
        """The window of ``Rect`` or ``ClosedRect`` in spiking mode; None for any other surrogate.

        A subclass may compute something else and counts as another one.
        """
        kind = type(surrogate_function)
        if kind not in (Rect, ClosedRect) or not surrogate_function.spiking:  # type: ignore[attr-defined]
            return None
        return cls(float(surrogate_function.alpha), kind is ClosedRect)  # type: ignore[attr-defined]

    @property
    def half_width(self) -> float:
        """Distance of either end from the threshold."""
        return 0.5 / self.alpha

    def inside(self, above: torch.Tensor) -> torch.Tensor:
        """Where the window is open, as a ``bool`` tensor; ``above`` is ``u - v_threshold``."""
        if torch.compiler.is_compiling() or above.device.type != "cpu":
            size = above.abs()
            return size <= self.half_width if self.closed else size < self.half_width
        rows = torch.atleast_1d(above)
        mask = torch.empty_like(rows, dtype=torch.bool)
        count = max(1, _AT_A_TIME * len(rows) // max(1, rows.numel()))
        for part, rows_part in zip(mask.split(count), rows.split(count), strict=True):
            # compared as floats and then copied: 2 times as fast on a CPU as straight to bool
            size = rows_part.abs()
            part.copy_(size.le_(self.half_width) if self.closed else size.lt_(self.half_width))
        return mask.view(above.shape)

    def pack(self, above: torch.Tensor) -> torch.Tensor:
        """:meth:`inside` at one bit per element, as :func:`~.bits.pack_bits` packs it."""
        return pack_bits(self.inside(above))

    def apply(
        self, packed: torch.Tensor, grad: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The gradient behind the window: ``alpha * grad`` inside, ``0 * grad`` outside.

        Args:
            packed: what :meth:`pack` returned.
            grad: gradient of the spikes.
            out: where to write the result; by default a new tensor, which autograd follows.
        """
        kept = keep_where_bits(packed, grad, out=out)
        return kept if self.alpha == 1 else kept.mul_(self.alpha)
