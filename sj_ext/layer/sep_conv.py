"""Separable convolution of spikes, the token mixer of Meta-SpikeFormer's early stages."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks, host
from .conv_bn import ConvBN, affine_of, conv_with
from .fuse import Fusable
from .spiking import NeuronFactory, new_neuron

__all__ = ["SepConv"]


class SepConv(nn.Module):
    r"""Pointwise to a wider layer, then depthwise and pointwise back, a neuron before each map.

    .. math::
        y = B_2 W_2 D\, \mathrm{LIF}(B_1 W_1\, \mathrm{LIF}(x))

    Nothing stands between the depthwise D and the pointwise :math:`W_2`, which reads real values
    therefore; :func:`fuse` makes the two one dense convolution of spikes.

    Args:
        dim: C.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        ratio: hidden channels, over C.
        kernel_size: of the depthwise convolution, odd.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out.

    Raises:
        ValueError: a size is out of range.

    Source: Yao et al., "Spike-driven Transformer V2", ICLR 2024 (arXiv 2404.03663).
    """

    def __init__(
        self,
        dim: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        ratio: float = 2,
        kernel_size: int = 7,
    ):
        super().__init__()
        checks.integer("dim", dim, at_least=1)
        if checks.integer("kernel_size", kernel_size, at_least=1) % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        hidden = int(dim * checks.number("ratio", ratio, above=0))
        self.neuron1 = new_neuron(spiking_neuron)
        self.expand = ConvBN(dim, hidden)
        self.neuron2 = new_neuron(spiking_neuron)
        self.reduce = _Separable(hidden, dim, kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.neuron2(self.expand(self.neuron1(x))))


class _Separable(Fusable):
    """Depthwise and pointwise convolution, then normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.depthwise = host.layer.Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=in_channels,
            bias=False,
        )
        self.pointwise = ConvBN(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.depthwise(x))

    def fused(self) -> nn.Module:
        """One dense convolution with the same output in evaluation."""
        scale, shift = affine_of(self.pointwise.bn)
        outer = scale[:, None] * self.pointwise.conv.weight.detach()[:, :, 0, 0]
        weight = torch.einsum("oc,cuv->ocuv", outer, self.depthwise.weight.detach()[:, 0])
        return conv_with(self.depthwise, weight, shift, groups=1)
