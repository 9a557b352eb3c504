"""Spiking self-attention (SSA) as Spikformer and Spikingformer have it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ... import checks
from ...arguments import checked
from ..conv_bn import ConvBN
from ..mlp import SHORTCUTS
from ..spiking import NeuronFactory, new_neuron
from .product import SpikeProduct

__all__ = ["SSA", "Projection"]

#: makes a linear map from ``in_channels`` to ``out_channels``, normalisation included
Projection = Callable[[int, int, bool], nn.Module]


@checked
class SSA(nn.Module):
    r"""Spiking self-attention: queries, keys and values are spikes, and there is no softmax.

    .. math::
        q, k, v = \mathrm{LIF}(B W_{q, k, v}\, s), \qquad
        a = \mathrm{LIF}_{\theta}(c\, (q k^T) v), \qquad y = B W_o\, a

    With the membrane shortcut :math:`s = \mathrm{LIF}(x)` and y is the output, real; with the spike
    shortcut :math:`s = x` and the output is :math:`\mathrm{LIF}(y)`.

    Args:
        dim: C.
        num_heads: divides C; the heads are neighbouring channels.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        shortcut: ``'membrane'`` (Spikingformer) or ``'spike'`` (Spikformer).
        qkv_bias, proj_bias: whether the maps have a bias before their normalisation.
        scale: c, whatever the heads' width.
        v_threshold: of the neuron that fires on the product.
        projection: makes the four maps from ``(in_channels, out_channels, bias)``; by default
            :class:`~sj_ext.layer.ConvBN`, 1 x 1.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or ``shortcut`` is unknown.

    Source: Zhou et al., "Spikformer", ICLR 2023 (arXiv 2209.15425); Zhou et al., "Spikingformer"
    (arXiv 2304.11954).
    """

    neuron_in: nn.Module
    neuron_out: nn.Module

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        shortcut: str = "membrane",
        qkv_bias: bool = False,
        proj_bias: bool = True,
        scale: float = 0.125,
        v_threshold: float = 0.5,
        projection: Projection | None = None,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.shortcut = checks.choice("shortcut", shortcut, SHORTCUTS)
        project = _pointwise if projection is None else projection
        if shortcut == "membrane":
            self.neuron_in = new_neuron(spiking_neuron)
        self.q, self.k, self.v = (project(dim, dim, qkv_bias) for _ in range(3))
        self.neuron_q, self.neuron_k, self.neuron_v = (new_neuron(spiking_neuron) for _ in range(3))
        self.product = SpikeProduct(num_heads, scale)
        self.neuron_attn = new_neuron(spiking_neuron, v_threshold)
        self.proj = project(dim, dim, proj_bias)
        if shortcut == "spike":
            self.neuron_out = new_neuron(spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.shortcut == "membrane":
            x = self.neuron_in(x)
        q, k, v = self.neuron_q(self.q(x)), self.neuron_k(self.k(x)), self.neuron_v(self.v(x))
        y = self._output(self.neuron_attn(self.product(q, k, v)))
        return self.neuron_out(y) if self.shortcut == "spike" else y

    def _output(self, attention: torch.Tensor) -> torch.Tensor:
        """The map of what fires on the product."""
        return self.proj(attention)


def check_heads(dim: int, num_heads: int) -> None:
    """Raise if ``num_heads`` heads do not share ``dim`` channels evenly."""
    checks.integer("dim", dim, at_least=1)
    checks.integer("num_heads", num_heads, at_least=1)
    if dim % num_heads:
        raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")


def _pointwise(in_channels: int, out_channels: int, bias: bool) -> nn.Module:
    return ConvBN(in_channels, out_channels, bias=bias)
