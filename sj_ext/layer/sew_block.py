"""Spike-element-wise residual block of convolutions, with a pooled shortcut."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from .conv_bn import ConvBN
from .spiking import NeuronFactory, new_neuron

__all__ = ["SEWBlock"]


@checked
class SEWBlock(nn.Module):
    r"""Two convolutions, each with a neuron behind it, beside a shortcut that is added.

    .. math::
        y = \mathrm{LIF}(B W_2\, \mathrm{LIF}(B W_1 x)) + S(x)

    S is the identity, or where the stride or the channels change, the neuron behind a 1 x 1
    convolution of the input's means over stride x stride pixels.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as PyTorch's ``nn.Conv2d``, of the
            first convolution; the second has stride 1. ``padding`` is half the kernel by default.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the stride divides
        height and width.

    Raises:
        ValueError: the stride does not divide height and width.

    Source: Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021 (arXiv
    2102.04159); with this shortcut in arXiv 2211.10686.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        spiking_neuron: NeuronFactory | None = None,
    ):
        super().__init__()
        self.stride = checks.integer("stride", stride, at_least=1)
        self.conv1 = ConvBN(in_channels, out_channels, kernel_size, stride, padding=padding)
        self.neuron1 = new_neuron(spiking_neuron)
        self.conv2 = ConvBN(out_channels, out_channels, kernel_size, padding=padding)
        self.neuron2 = new_neuron(spiking_neuron)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("pool", host.layer.AvgPool2d(stride, stride))
            self.shortcut.add_module("project", ConvBN(in_channels, out_channels))
            self.shortcut.add_module("neuron", new_neuron(spiking_neuron))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise ValueError(
                f"stride must divide height and width of x, got {self.stride} for "
                f"{list(x.shape[-2:])}"
            )
        y = self.neuron2(self.conv2(self.neuron1(self.conv1(x))))
        return y + (x if self.shortcut is None else self.shortcut(x))
