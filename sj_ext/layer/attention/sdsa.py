"""Spike-driven self-attention: two of the operators that Meta-SpikeFormer's paper lists.

SDSA-3 is the one that its network uses. SDSA-2 and SDSA-4 are in no public program, and not here.
"""

from __future__ import annotations

import torch
from torch import nn

from ...arguments import checked
from ..conv_bn import ConvBN
from ..rep_conv import RepConvBN
from ..spiking import NeuronFactory, new_neuron
from .silence import heard
from .ssa import SSA, check_heads

__all__ = ["SDSA1", "SDSA3"]


@checked
class SDSA1(nn.Module):
    r"""Spike-driven self-attention 1: a mask of channels, without any product of matrices.

    .. math::
        y = B W_o \bigl(q \odot \mathrm{LIF}_\theta\bigl(\textstyle\sum_{tokens} k \odot v\bigr)
        \bigr), \qquad q, k, v = \mathrm{LIF}(B W\, \mathrm{LIF}(x))

    at O(L d); the mask is the same for all tokens. As every channel is masked on its own, heads
    make no difference.

    Args:
        dim: C.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        v_threshold: of the neuron that fires on the sum.
        qkv_bias, proj_bias: whether the maps have a bias before their normalisation.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out, real.

    Raises:
        ValueError: ``dim`` is below 1.

    Source: Yao et al., "Spike-driven Transformer", NeurIPS 2023 (arXiv 2307.01694); SDSA-1 in arXiv
    2404.03663.
    """

    def __init__(
        self,
        dim: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        v_threshold: float = 0.5,
        qkv_bias: bool = False,
        proj_bias: bool = True,
    ):
        super().__init__()
        check_heads(dim, 1)
        self.neuron_in = new_neuron(spiking_neuron)
        self.q, self.k, self.v = (ConvBN(dim, dim, bias=qkv_bias) for _ in range(3))
        self.neuron_q, self.neuron_k, self.neuron_v = (new_neuron(spiking_neuron) for _ in range(3))
        self.neuron_attn = new_neuron(spiking_neuron, v_threshold)
        self.proj = ConvBN(dim, dim, bias=proj_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.neuron_in(x)
        q, k, v = self.neuron_q(self.q(s)), self.neuron_k(self.k(s)), self.neuron_v(self.v(s))
        mask = self.neuron_attn((k * v).sum((-2, -1), keepdim=True))
        return self.proj(q * mask)


class SDSA3(SSA):
    r"""Spike-driven self-attention 3: :math:`\mathrm{LIF}_{0.5}(0.125\, q (k^T v))`, linear in L.

    The four maps are :class:`~sj_ext.layer.RepConv` with one more normalisation. With a threshold
    of 0.5 the neuron fires on a product of 4 spikes. Where it fires nowhere in a batch, no gradient
    passes through the attention: behind silence the three normalisations of the last map would
    multiply it by 316 each, and overflow after some blocks.

    Args:
        dim: C.
        num_heads: divides C.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out, real.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Yao et al., "Spike-driven Transformer V2", ICLR 2024 (arXiv 2404.03663).
    """

    def __init__(self, dim: int, num_heads: int, spiking_neuron: NeuronFactory | None = None):
        super().__init__(dim, num_heads, spiking_neuron, projection=_rep_conv)

    def _output(self, attention: torch.Tensor) -> torch.Tensor:
        return self.proj(heard(attention))


def _rep_conv(in_channels: int, out_channels: int, bias: bool) -> nn.Module:
    return RepConvBN(in_channels, out_channels)
