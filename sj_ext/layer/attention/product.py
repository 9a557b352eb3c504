"""The product at the heart of spiking self-attention: linear, without softmax, of spikes only."""

from __future__ import annotations

import torch
from torch import nn

from ... import checks

__all__ = ["SpikeProduct", "spike_product"]


def spike_product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, scale: float
) -> torch.Tensor:
    r"""Scaled products of queries, keys and values, head by head: :math:`o = c\, (q k^T) v`.

    Sums of products of spikes are whole numbers, so that :math:`(q k^T) v` and :math:`q (k^T v)`
    are equal; the cheaper one is computed, at :math:`L^2 d` or :math:`L d^2` per head.

    Args:
        q, k, v: ``[..., C, H, W]``; head i owns the channels i d to (i + 1) d, d = C / heads.
        heads: number of heads.
        scale: c.

    Returns:
        ``[..., C, H, W]``.
    """
    shape = q.shape
    # channels before tokens, as they lie in memory: the matrices are the transposed ones
    q, k, v = (z.flatten(-2).unflatten(-2, (heads, -1)) for z in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):  # counts stay exact
        many_tokens = q.shape[-1] > q.shape[-2]
        o = (v @ k.mT) @ q if many_tokens else v @ (k.mT @ q)
        return (o * scale).reshape(shape)


class SpikeProduct(nn.Module):
    """:func:`spike_product` as a module, so that what counts operations can see its operands.

    Args:
        heads: number of heads.
        scale: factor of the product.

    Shapes:
        queries, keys and values ``[T, N, C, H, W]`` or ``[N, C, H, W]``; the same out.

    Raises:
        ValueError: ``heads`` is below 1.
    """

    def __init__(self, heads: int, scale: float):
        super().__init__()
        self.heads = checks.integer("heads", heads, at_least=1)
        self.scale = checks.number("scale", scale)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return spike_product(q, k, v, self.heads, self.scale)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, scale={self.scale}"
