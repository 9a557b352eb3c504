"""The two-layer channel mixing of spiking transformers, in both orders of neuron and map."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks
from ..arguments import checked
from .conv_bn import ConvBN
from .spiking import NeuronFactory, new_neuron

__all__ = ["SHORTCUTS", "SpikingMLP"]

#: what flows past a block: real membrane potentials, or spikes, whose sums are whole numbers
SHORTCUTS = ("membrane", "spike")


@checked
class SpikingMLP(nn.Module):
    r"""Two convolutions with a wider layer between them, one neuron before or behind each.

    .. math::
        M(x) = B_2 W_2\, \mathrm{LIF}(B_1 W_1\, \mathrm{LIF}(x)) \quad\text{(membrane)}, \qquad
        M(x) = \mathrm{LIF}(B_2 W_2\, \mathrm{LIF}(B_1 W_1 x)) \quad\text{(spike)}

    with batch normalisations B.

    Args:
        dim: C, channels in and out.
        hidden: channels between the two.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        shortcut: ``'membrane'`` for neurons before the maps (the output is real), ``'spike'`` for
            neurons behind them (the output is spikes).
        bias: of the convolutions.
        kernel_size: of both, odd.
        dropout: share of values that are left out in training, behind each convolution.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out.

    Raises:
        ValueError: a size below 1 or an unknown ``shortcut``.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        shortcut: str = "membrane",
        bias: bool = True,
        kernel_size: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        checks.integer("dim", dim, at_least=1)
        checks.integer("hidden", hidden, at_least=1)
        self.shortcut = checks.choice("shortcut", shortcut, SHORTCUTS)
        self.neuron1 = new_neuron(spiking_neuron)
        self.fc1 = ConvBN(dim, hidden, kernel_size, bias=bias, dropout=dropout)
        self.neuron2 = new_neuron(spiking_neuron)
        self.fc2 = ConvBN(hidden, dim, kernel_size, bias=bias, dropout=dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.shortcut == "membrane":
            return self.fc2(self.neuron2(self.fc1(self.neuron1(x))))
        return self.neuron2(self.fc2(self.neuron1(self.fc1(x))))
