"""Group-wise spiking feed-forward network (GWFFN) of SpikingResformer."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks
from .conv_bn import ConvBN
from .spiking import NeuronFactory, new_neuron

__all__ = ["GWFFN"]


class GWFFN(nn.Module):
    r"""Pointwise to a wider layer, grouped 3 x 3 convolutions with a shortcut past them, and back.

    .. math::
        w_0 = B W_1\, \mathrm{LIF}(x), \qquad
        w_k = B G_k\, \mathrm{LIF}(w_{k-1}), \qquad
        y = B W_2\, \mathrm{LIF}(w_K + w_0)

    with convolutions G whose groups have ``group_size`` channels.

    Args:
        dim: C.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        num_conv: how many grouped convolutions there are.
        ratio: hidden channels, over C.
        group_size: channels of a group; divides the hidden channels.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out, real.

    Raises:
        ValueError: a size is out of range, or ``group_size`` does not divide the hidden channels.

    Source: Shi et al., "SpikingResformer", CVPR 2024 (arXiv 2403.14302).
    """

    def __init__(
        self,
        dim: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        num_conv: int = 1,
        ratio: float = 4,
        group_size: int = 64,
    ):
        super().__init__()
        checks.integer("dim", dim, at_least=1)
        checks.integer("group_size", group_size, at_least=1)
        hidden = int(dim * checks.number("ratio", ratio, above=0))
        if hidden % group_size:
            raise ValueError(
                f"group_size must divide the {hidden} hidden channels, got {group_size}"
            )
        self.up = _firing(spiking_neuron, ConvBN(dim, hidden))
        self.convs = nn.ModuleList(
            _firing(spiking_neuron, ConvBN(hidden, hidden, 3, groups=hidden // group_size))
            for _ in range(checks.integer("num_conv", num_conv, at_least=1))
        )
        self.down = _firing(spiking_neuron, ConvBN(hidden, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = wide = self.up(x)
        for conv in self.convs:
            w = conv(w)
        return self.down(w + wide)


def _firing(spiking_neuron: NeuronFactory | None, project: nn.Module) -> nn.Sequential:
    """A map of what a neuron makes of its input."""
    part = nn.Sequential()
    part.add_module("neuron", new_neuron(spiking_neuron))
    part.add_module("project", project)
    return part
