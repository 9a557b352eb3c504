"""The product at the heart of spiking self-attention: linear, without softmax, of spikes only."""

from __future__ import annotations

import torch
from torch import nn

from ... import checks
from .matrix_product import MatrixProduct

__all__ = ["SpikeProduct"]


class SpikeProduct(nn.Module):
    r"""Scaled products of queries, keys and values, head by head: :math:`o = c\, (q k^T) v`.

    Sums of products of spikes are whole numbers, so that :math:`(q k^T) v` and :math:`q (k^T v)`
    are equal; the cheaper one is computed, at :math:`L^2 d` or :math:`L d^2` per head. Head i owns
    the channels i d to (i + 1) d, d = C / heads.

    Args:
        heads: number of heads.
        scale: c.

    Shapes:
        queries, keys and values ``[T, N, C, H, W]`` or ``[N, C, H, W]``; the same out.

    Raises:
        ValueError: ``heads`` is below 1.
    """

    def __init__(self, heads: int, scale: float):
        super().__init__()
        self.heads = checks.integer("heads", heads, at_least=1)
        self.scale = checks.number("scale", scale)
        self.first, self.second = MatrixProduct(), MatrixProduct()

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shape = q.shape
        # channels before tokens, as they lie in memory: the matrices are the transposed ones
        q, k, v = (z.flatten(-2).unflatten(-2, (self.heads, -1)) for z in (q, k, v))
        if q.shape[-1] > q.shape[-2]:
            o = self.second((self.first((v, k.transpose(-2, -1))), q))
        else:
            o = self.second((v, self.first((k.transpose(-2, -1), q))))
        return (o * self.scale).reshape(shape)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, scale={self.scale}"
