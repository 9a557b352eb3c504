"""A convolution with the batch normalisation behind it, the linear map of every part here."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from .fuse import Fusable

__all__ = ["ConvBN", "affine_of"]


@checked
class ConvBN(Fusable):
    r"""Convolution, then batch normalisation over time, samples and space together.

    .. math::
        y = \gamma \frac{W * x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Args:
        in_channels, out_channels, kernel_size, stride, groups: as PyTorch's ``nn.Conv2d``.
        padding: ``kernel_size // 2`` by default, which keeps the size at stride 1.
        bias: whether the convolution has a bias, which only evaluation can tell from the shift.
        dropout: share of the convolution's values that are left out in training.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out.

    Raises:
        ValueError: as PyTorch's ``nn.Conv2d``, or ``dropout`` is no share below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        checks.sizes(in_channels=in_channels, out_channels=out_channels, groups=groups)
        checks.sizes(kernel_size=kernel_size, stride=stride)
        if padding is not None:
            checks.integer("padding", padding, at_least=0)
        checks.number("dropout", dropout, at_least=0, below=1)
        self.conv = host.layer.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2 if padding is None else padding,
            groups=groups,
            bias=bias,
        )
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.bn = host.layer.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y if self.dropout is None else self.dropout(y))

    def fused(self) -> nn.Module:
        """One convolution with the same output in evaluation."""
        scale, shift = affine_of(self.bn)
        bias = 0 if self.conv.bias is None else self.conv.bias.detach()
        return conv_with(
            self.conv, self.conv.weight.detach() * _column(scale), scale * bias + shift
        )


def affine_of(bn: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand, each ``[C]``, that a batch normalisation is in evaluation."""
    weight, deviation = bn.weight.detach(), (bn.running_var + bn.eps).sqrt()
    # multiplied before it is divided, as in the programs, whose roundings are recorded
    return weight / deviation, bn.bias.detach() - bn.running_mean * weight / deviation


def conv_with(like: Any, weight: torch.Tensor, bias: torch.Tensor, **geometry: Any) -> nn.Module:
    """A convolution of the given weight ``[out, in / groups, k, k]`` and bias, else as ``like``."""
    arguments: dict[str, Any] = {
        "stride": like.stride,
        "padding": like.padding,
        "groups": like.groups,
    } | geometry
    conv = type(like)(
        weight.shape[1] * arguments["groups"], weight.shape[0], tuple(weight.shape[2:]), **arguments
    )
    conv.weight, conv.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    conv.step_mode = like.step_mode
    return conv.train(like.training)


def _column(scale: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, 1, 1, 1)
