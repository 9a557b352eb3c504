"""Spiking self-attention within groups of pixels that stand apart from each other."""

from __future__ import annotations

from typing import Any

import torch

from ... import checks
from ..spiking import NeuronFactory
from .ssa import SSA

__all__ = ["LocalSSA"]


class LocalSSA(SSA):
    """Self-attention (:class:`SSA`) within each of n x n strided sub-grids of the map.

    The pixel in row h and column w belongs to the group (h mod n, w mod n): a group spreads over
    the whole map, at an n-th of its resolution.

    Args:
        dim: C.
        num_heads: divides C.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        groups: n.
        **arguments: the other arguments of :class:`SSA`.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``, H and W multiples of
        n; the same out.

    Raises:
        ValueError: as :class:`SSA`, or ``groups`` does not divide the height and width.

    Source: Zhang et al., "SGLFormer: Spiking Global-Local-Fusion Transformer with High
    Performance", Frontiers in Neuroscience 18, 2024.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        groups: int = 2,
        **arguments: Any,
    ):
        super().__init__(dim, num_heads, spiking_neuron, **arguments)
        self.groups = checks.integer("groups", groups, at_least=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, batch = self.groups, x.shape[-4]
        if x.shape[-1] % n or x.shape[-2] % n:
            raise ValueError(
                f"height and width of x must be multiples of groups={n}, got {list(x.shape[-2:])}"
            )
        # [.., N, C, H, W] to [.., N, n, n, C, H / n, W / n], whose groups join the batch
        parts = x.unflatten(-1, (-1, n)).unflatten(-3, (-1, n))
        apart = parts.movedim((-3, -1), (-5, -4)).flatten(-6, -4)
        y = super().forward(apart).unflatten(-4, (batch, n, n))
        return y.movedim((-5, -4), (-3, -1)).flatten(-4, -3).flatten(-2, -1)
