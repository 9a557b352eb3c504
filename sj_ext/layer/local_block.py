"""A convolutional block of firing units: depthwise, expansion, depthwise, contraction."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks
from ..arguments import checked
from .conv_bn import ConvBN
from .spiking import NeuronFactory, new_neuron

__all__ = ["FiringConv", "LocalBlock"]


@checked
class FiringConv(nn.Module):
    """Convolution, norm and neuron.

    Args:
        in_channels, out_channels, kernel_size, groups: as PyTorch's ``nn.Conv2d``, without bias.
        spiking_neuron: makes the neuron, see :mod:`sj_ext.layer.spiking`.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; to spikes.

    Raises:
        ValueError: as PyTorch's ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        spiking_neuron: NeuronFactory | None = None,
        *,
        groups: int = 1,
    ):
        super().__init__()
        self.project = ConvBN(in_channels, out_channels, kernel_size, groups=groups)
        self.neuron = new_neuron(spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neuron(self.project(x))


class LocalBlock(nn.Module):
    r"""The local block of SGLFormer.

    .. math::
        u = x + \mathrm{DW}_3(x), \qquad y = u + P_2\, \mathrm{DW}_3\, P_1\, u

    of convolution, norm and neuron each, with 4 C channels in the middle.

    Args:
        dim: C.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        ratio: channels in the middle, over C.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out, whole
        numbers where the input is.

    Raises:
        ValueError: a size is below 1.

    Source: Zhang et al., "SGLFormer", Frontiers in Neuroscience 18, 2024.
    """

    def __init__(self, dim: int, spiking_neuron: NeuronFactory | None = None, *, ratio: int = 4):
        super().__init__()
        hidden = checks.integer("dim", dim, at_least=1) * checks.integer("ratio", ratio, at_least=1)
        self.spatial = FiringConv(dim, dim, 3, spiking_neuron, groups=dim)
        self.expand = FiringConv(dim, hidden, 1, spiking_neuron)
        self.inner = FiringConv(hidden, hidden, 3, spiking_neuron, groups=hidden)
        self.contract = FiringConv(hidden, dim, 1, spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = x + self.spatial(x)
        return u + self.contract(self.inner(self.expand(u)))
