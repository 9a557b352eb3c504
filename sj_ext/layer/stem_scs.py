"""The spiking convolutional stem (SCS) of Spikformer V2, as the paper's counts determine it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from .. import checks
from .conv_bn import ConvBN
from .mlp import SHORTCUTS, SpikingMLP
from .residual import ResidualBlock
from .spiking import NeuronFactory, new_neuron
from .stem import check_stride

__all__ = ["SCS"]


class SCS(nn.Module):
    """Spiking convolutional stem: 2 x 2 patches, halved four times, a wide 3 x 3 block after each.

    A stage is a 2 x 2 convolution of stride 2 with normalisation and a neuron, then a block with a
    shortcut, 3 x 3 from c to 4 c channels and back. It is a reading of the paper, whose program is
    not public: the kernels and widths are those that give its parameter counts; where the neurons
    stand and how the shortcut joins is not known, and selectable.

    Args:
        in_channels: channels of the input.
        widths: channels of the stages.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        shortcut: ``'spike'`` for neurons behind the convolutions, ``'membrane'`` in front.
        residual: ``'add'`` or ``'iand'``, see :class:`ResidualBlock`.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; every stage halves
        height and width.

    Raises:
        ValueError: an unknown name, ``'iand'`` of what is not binary, or a size of the input that
            the stride does not divide.

    Source: arXiv 2401.02020.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        spiking_neuron: NeuronFactory | None = None,
        *,
        shortcut: str = "spike",
        residual: str = "add",
    ):
        super().__init__()
        checks.choice("shortcut", shortcut, SHORTCUTS)
        checks.choice("residual", residual, ("add", "iand"))
        if residual == "iand" and shortcut != "spike":
            raise ValueError(
                "residual must be 'add' with shortcut='membrane', whose x is not binary, got 'iand'"
            )
        widths = checks.shape("widths", widths)
        self.stages = nn.Sequential()
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else checks.integer("in_channels", in_channels, at_least=1)
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            if shortcut == "membrane" and i:
                parts["neuron"] = new_neuron(spiking_neuron)
            parts["project"] = ConvBN(before, width, 2, 2, padding=0)
            if shortcut == "spike":
                parts["neuron"] = new_neuron(spiking_neuron)
            mlp = SpikingMLP(
                width, 4 * width, spiking_neuron, shortcut=shortcut, bias=False, kernel_size=3
            )
            parts["block"] = ResidualBlock(join=residual, mlp=mlp)
            self.stages.append(nn.Sequential(parts))
        self.stride = 2 ** len(widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_stride(x, self.stride)
        return self.stages(x)
