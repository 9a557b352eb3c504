"""Convolutional tokenizer (CT) of Spikeformer: a chain of spike-element-wise residual blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from .. import checks
from ..arguments import checked
from .sew_block import SEWBlock
from .spiking import NeuronFactory

__all__ = ["ConvTokenizer"]


@checked
class ConvTokenizer(nn.Module):
    """Convolutional tokenizer: as many :class:`SEWBlock` as there are strides, doubling in width.

    Args:
        in_channels: channels of the input, which the first block reads as it is.
        dim: channels of the tokens.
        strides: of the blocks.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        kernel_size: of the blocks' convolutions.
        padding: of the blocks' convolutions; half the kernel by default.
        paired: whether two blocks in a row have the same width.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the product of the
        strides, ``.stride``, divides height and width.

    Attributes:
        stride: how many pixels of the input a step of the output is.

    Raises:
        ValueError: ``dim`` cannot be halved so often, an odd number of paired blocks, or a size of
            the input that the strides do not divide.

    Source: Li et al., "Spikeformer: A Novel Architecture for Training High-Performance Low-Latency
    Spiking Neural Network" (arXiv 2211.10686).
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        strides: Sequence[int],
        spiking_neuron: NeuronFactory | None = None,
        *,
        kernel_size: int = 3,
        padding: int | None = None,
        paired: bool = True,
    ):
        super().__init__()
        strides = checks.shape("strides", strides)
        widths = (
            checks.integer("in_channels", in_channels, at_least=1),
            *_widths(checks.integer("dim", dim, at_least=1), len(strides), paired),
        )
        self.blocks = nn.Sequential(
            *(
                SEWBlock(widths[i], widths[i + 1], kernel_size, stride, padding, spiking_neuron)
                for i, stride in enumerate(strides)
            )
        )
        self.stride = math.prod(strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def _widths(dim: int, count: int, paired: bool) -> tuple[int, ...]:
    """Channels behind each block: doubling up to ``dim``."""
    repeat = 2 if checks.flag("paired", paired) else 1
    if count % repeat:
        raise ValueError(f"strides must be an even number of paired blocks, got {count}")
    levels = count // repeat
    if dim % 2 ** (levels - 1):
        raise ValueError(f"dim must be a multiple of {2 ** (levels - 1)}, got {dim}")
    return tuple(dim // 2 ** (levels - 1 - i // repeat) for i in range(count))
