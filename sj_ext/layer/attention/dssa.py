"""Dual spike self-attention (DSSA): each product has spikes on one side."""

from __future__ import annotations

import torch
from torch import nn

from ... import checks
from ..conv_bn import ConvBN
from ..spiking import NeuronFactory, new_neuron
from .matrix_product import MatrixProduct
from .ssa import check_heads

__all__ = ["DSSA"]


class DSSA(nn.Module):
    r"""Dual spike self-attention between the pixels of a map and its patches.

    .. math::
        s = \mathrm{LIF}(x), \qquad (y_1, y_2) = B W s, \qquad
        A = \mathrm{LIF}(c_1\, y_1^T s), \qquad o = c_2\, y_2 A, \qquad
        y = B W_o\, \mathrm{LIF}(o)

    head by head. W is a convolution of p x p patches with stride p, so that :math:`y_1, y_2` are
    real and stand for n patches, A is a map of spikes ``[n, H W]``, and each product has spikes on
    one side. The factors normalise the products by how many spikes there are,

    .. math::
        c_1 = (f_s\, d)^{-1/2}, \qquad c_2 = (f_A\, n)^{-1/2},

    with rates f per head, kept as running means of the rates in training (momentum 0.001; the first
    batch sets them). n follows from the map, so that one module serves every size.

    A head whose rate is 0 in training is left out of the product, which is 0 anyway: nothing is
    divided by it. In evaluation, a head without a running rate (a fresh module, or one that was
    silent throughout) takes the rate of each sample and step.

    Args:
        dim: C.
        num_heads: divides C.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        patch_size: p, a divisor of height and width.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out, real.

    Attributes:
        firing_rate_x, firing_rate_attn: the running rates, ``[1, 1, heads, 1, 1]``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or ``patch_size`` the height and width.

    Source: Shi et al., "SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural
    Networks", CVPR 2024 (arXiv 2403.14302).
    """

    momentum = 0.001
    firing_rate_x: torch.Tensor
    firing_rate_attn: torch.Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        patch_size: int = 1,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.patch_size = checks.integer("patch_size", patch_size, at_least=1)
        self.neuron_in = new_neuron(spiking_neuron)
        self.patches = ConvBN(dim, 2 * dim, patch_size, patch_size, padding=0)
        self.product_attn, self.product_out = MatrixProduct(), MatrixProduct()
        self.neuron_attn = new_neuron(spiking_neuron)
        self.neuron_out = new_neuron(spiking_neuron)
        self.proj = ConvBN(dim, dim)
        for name in ("firing_rate_x", "firing_rate_attn"):
            self.register_buffer(name, torch.zeros(1, 1, num_heads, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % self.patch_size or x.shape[-2] % self.patch_size:
            raise ValueError(
                f"patch_size must divide height and width of x, got {self.patch_size} for "
                f"{list(x.shape[-2:])}"
            )
        spikes = self.neuron_in(x)
        first, second = self._heads(self.patches(spikes)).chunk(2, -2)
        s = self._heads(spikes)
        product = self.product_attn((first.transpose(-2, -1), s))
        product = product * self._factor(s, self.firing_rate_x, s.shape[-2])
        attention = self.neuron_attn(product)
        o = self.product_out((second, attention))
        o = o * self._factor(attention, self.firing_rate_attn, attention.shape[-2])
        return self.proj(self.neuron_out(o.reshape(x.shape)))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., C, H, W]`` to ``[..., heads, C / heads, H W]``."""
        return x.flatten(-2).unflatten(-2, (self.num_heads, -1))

    def _factor(self, spikes: torch.Tensor, running: torch.Tensor, count: int) -> torch.Tensor:
        """1 / sqrt(rate * count) per head, 0 where the rate is; updates the rate in training."""
        rate = spikes.detach().mean((-2, -1), keepdim=True)  # [..., heads, 1, 1]
        if self.training:
            rate = rate.flatten(0, -4).mean(0)  # [heads, 1, 1]
            self._update(running, rate)
            rate = running.view_as(rate)
        else:
            known = running.view(-1, 1, 1)
            rate = torch.where(known > 0, known, rate)
        silent = rate == 0
        return (rate * count).masked_fill(silent, 1.0).rsqrt().masked_fill(silent, 0.0)

    @torch.no_grad()
    def _update(self, running: torch.Tensor, rate: torch.Tensor) -> None:
        rate = rate.view_as(running).to(running.dtype)
        start = torch.where(running.any(), running, rate)
        running.copy_(start * (1 - self.momentum) + rate * self.momentum)
