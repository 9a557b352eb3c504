"""Downsampling between the stages of a pyramid: neuron, strided convolution, normalisation."""

from __future__ import annotations

import torch
from torch import nn

from ..arguments import checked
from .conv_bn import ConvBN
from .spiking import NeuronFactory, new_neuron

__all__ = ["Downsampling"]


@checked
class Downsampling(nn.Module):
    """A strided convolution of spikes; the membrane potentials that it reads fire first.

    Args:
        in_channels, out_channels, kernel_size, stride: as PyTorch's ``nn.Conv2d``; padding is half
            the kernel.
        spiking_neuron: makes the neuron, see :mod:`sj_ext.layer.spiking`.
        first: whether it reads the image, without a neuron.
        bias: of the convolution.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; with stride s height
        and width become ``ceil(H / s)`` and ``ceil(W / s)``.

    Raises:
        ValueError: as PyTorch's ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 2,
        spiking_neuron: NeuronFactory | None = None,
        *,
        first: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.neuron = None if first else new_neuron(spiking_neuron)
        self.project = ConvBN(in_channels, out_channels, kernel_size, stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x if self.neuron is None else self.neuron(x))
