r"""A 5 x 5 convolution that learns how much of its kernel it needs.

The inner 3 x 3 part :math:`W_3` and the ring around it :math:`W_5` each have a threshold for their
norm; below it the part is cut. Skipping, 3 x 3 and 5 x 5 are then one convolution without branches:

.. math::
    d_3 = I(\lVert W_3 \rVert - t_3), \quad d_5 = I(\lVert W_5 \rVert - t_5), \qquad
    W = d_3 (W_3 + d_5 W_5),

with :math:`I(x) = [x \ge 0]`, whose gradient is that of the logistic function.

Source: Yan et al., "Efficient spiking neural network design via neural architecture search", Neural
Networks 173, 2024; Stamoulis et al., "Single-Path NAS", 2019 (arXiv 1904.02877).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import checks

__all__ = ["SuperKernel", "same_padding"]


class SuperKernel(nn.Module):
    """A convolution of 5 x 5, 3 x 3 or no kernel, by two learned thresholds.

    While it trains, an indicator is dropped with a probability, so that both parts are tried; in
    evaluation never. What is left is not scaled up.

    Args:
        in_channels, out_channels, stride: as PyTorch's ``nn.Conv2d``.
        dropout: probability with which an indicator counts as 0 in a training step.

    Shapes:
        ``[N, C, H, W]`` to ``[N, C_out, ceil(H / stride), ceil(W / stride)]``, padded as TensorFlow
        does for "same".

    Attributes:
        skippable: whether the inner part may be cut, which it may at stride 1.

    Raises:
        ValueError: a size or probability is out of range.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, dropout: float = 0.0
    ):
        super().__init__()
        checks.integer("in_channels", in_channels, at_least=1)
        checks.integer("out_channels", out_channels, at_least=1)
        self.stride = checks.integer("stride", stride, at_least=1)
        self.dropout = checks.number("dropout", dropout, at_least=0, below=1)
        self.skippable = stride == 1
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 5, 5))
        nn.init.kaiming_normal_(self.weight)
        # near the norms that the parts start with, so that every decision starts open
        std = float(self.weight.detach().std()) if self.weight.device.type != "meta" else 0.0
        pairs = in_channels * out_channels
        self.t3 = nn.Parameter(torch.tensor([std * (9 * pairs) ** 0.5]))
        self.t5 = nn.Parameter(torch.tensor([std * (16 * pairs) ** 0.5]))

    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The inner 3 x 3 part and the ring around it, each ``[C_out, C, 5, 5]`` with zeros."""
        inner = F.pad(self.weight[:, :, 1:4, 1:4], (1, 1, 1, 1))
        return inner, self.weight - inner

    def indicators(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether the inner part and the ring are there, each 0 or 1, ``[1]``."""
        inner, ring = self.parts()
        there = torch.ones_like(self.t3)
        d3 = _Indicator.apply(inner.norm() - self.t3) if self.skippable else there
        d5 = _Indicator.apply(ring.norm() - self.t5)
        if self.training and self.dropout:
            d5 = d5 * (torch.rand_like(d5) >= self.dropout)
            d3 = d3 * (torch.rand_like(d3) >= self.dropout) if self.skippable else d3
        return d3, d5

    def kernel(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernel ``[C_out, C, 5, 5]`` and its size, 0, 3 or 5, ``[1]``; both can be learned."""
        inner, ring = self.parts()
        d3, d5 = self.indicators()
        return d3 * (inner + d5 * ring), d3 * (3 + 2 * d5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolved(x, self.kernel()[0])

    def convolved(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """``x`` convolved with a kernel, ``[N, C, H, W]``, that :meth:`kernel` gave."""
        return F.conv2d(same_padding(x, 5, self.stride), kernel, stride=self.stride)

    @torch.no_grad()
    def decode(self) -> str:
        """What the thresholds have left: ``'skip'``, ``'conv3'`` or ``'conv5'``."""
        inner, ring = self.parts()
        if self.skippable and not bool(inner.norm() >= self.t3):
            return "skip"
        return "conv5" if bool(ring.norm() >= self.t5) else "conv3"

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, stride={self.stride}"


def same_padding(x: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """``x``, ``[N, C, H, W]``, with zeros around as TensorFlow puts them for "same".

    Where an odd number of rows is needed, the one more is behind: PyTorch's symmetric padding moves
    the map by a pixel there.
    """
    total = [
        max((-(-size // stride) - 1) * stride + kernel_size - size, 0) for size in x.shape[-2:]
    ]
    (top, left), (rows, columns) = [n // 2 for n in total], total
    return F.pad(x, (left, columns - left, top, rows - top))


class _Indicator(torch.autograd.Function):
    """[x >= 0], with the gradient of the logistic function."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        logistic = x.sigmoid()
        return grad * logistic * (1 - logistic)
