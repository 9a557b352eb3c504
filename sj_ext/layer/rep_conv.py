r"""A convolution that is three in training and one in inference.

In evaluation a :class:`RepConv` is one dense 3 x 3 convolution of its input with zero padding,

.. math::
    K_{oiuv} = s^b_o \sum_c P_{oc} D_{cuv}\, s^a_c W_{ci}, \qquad
    k_o = s^b_o \Bigl(\sum_c P_{oc} b^a_c \sum_{uv} D_{cuv} - \mu^b_o\Bigr) + \beta^b_o

with :math:`s = \gamma / \sqrt{\sigma^2 + \epsilon}` and :math:`b^a = \beta^a - \mu^a s^a`, because
the border around the inner map holds what a zero of the input becomes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import checks, host
from .conv_bn import ConvBN, affine_of, conv_with
from .fuse import Fusable

__all__ = ["RepConv", "RepConvBN"]


class RepConv(Fusable):
    """Pointwise, depthwise 3 x 3 and pointwise convolution, normalised after the first and last.

    The border that the depthwise convolution reads is the inner normalisation of zero, with running
    statistics, and passes no gradient; that is what makes the three one convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same height and
        width out.

    Raises:
        ValueError: a number of channels is below 1.

    Source: Yao et al., "Spike-driven Transformer V2", ICLR 2024 (arXiv 2404.03663).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        checks.integer("in_channels", in_channels, at_least=1)
        checks.integer("out_channels", out_channels, at_least=1)
        self.inner = ConvBN(in_channels, in_channels)
        self.depthwise = host.layer.Conv2d(
            in_channels, in_channels, 3, groups=in_channels, bias=False
        )
        self.outer = ConvBN(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.inner(x)  # in training its statistics have now been updated
        _, of_zero = affine_of(self.inner.bn)
        return self.outer(self.depthwise(_bordered(u, of_zero.to(u.dtype))))

    def fused(self) -> nn.Module:
        """One 3 x 3 convolution with zero padding and the same output in evaluation."""
        factor_in, of_zero = affine_of(self.inner.bn)
        factor_out, shift_out = affine_of(self.outer.bn)
        inner = self.inner.conv.weight.detach()[:, :, 0, 0]
        middle = self.depthwise.weight.detach()[:, 0]
        outer = factor_out[:, None] * self.outer.conv.weight.detach()[:, :, 0, 0]
        weight = torch.einsum("oc,cuv,c,ci->oiuv", outer, middle, factor_in, inner)
        bias = outer @ (of_zero * middle.sum((-2, -1))) + shift_out
        return conv_with(self.depthwise, weight, bias, padding=1, groups=1)


class RepConvBN(Fusable):
    """A :class:`RepConv` and one more batch normalisation: the projection of SDSA-3.

    Args:
        in_channels: as :class:`RepConv`.
        out_channels: as :class:`RepConv`.

    Shapes:
        as :class:`RepConv`: ``[T, N, C, H, W]`` or ``[N, C, H, W]``.

    Raises:
        ValueError: as :class:`RepConv`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.rep = RepConv(in_channels, out_channels)
        self.bn = host.layer.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.rep(x))

    def fused(self) -> nn.Module:
        """One 3 x 3 convolution with zero padding and the same output in evaluation."""
        conv: Any = self.rep.fused()
        scale, shift = affine_of(self.bn)
        return conv_with(
            conv, conv.weight.detach() * scale.view(-1, 1, 1, 1), conv.bias.detach() * scale + shift
        )


def _bordered(u: torch.Tensor, border: torch.Tensor) -> torch.Tensor:
    """``u`` ``[..., C, H, W]`` with a pixel around it that holds ``border`` ``[C]``."""
    around = F.pad(u.new_zeros(u.shape[-2:]), (1, 1, 1, 1), value=1.0)
    return F.pad(u, (1, 1, 1, 1)) + border.view(-1, 1, 1) * around
