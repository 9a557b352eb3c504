"""Convolutional stems: chains of convolution, neuron and pooling, written as they are in papers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from .conv_bn import ConvBN
from .spiking import NeuronFactory, new_neuron

__all__ = ["ConvStem"]


@checked
class ConvStem(nn.Module):
    r"""A stem from a word per stage: C for convolution and norm, N for neuron, P for max pooling.

    ``"NPC"`` fires, pools the spikes and convolves; ``"CPN"`` convolves, pools the real values and
    fires, which is the order of CML: a pool over spikes has many equal maxima and sends its
    gradient to an arbitrary one. Convolutions are 3 x 3 without bias, pooling is 3 x 3 with stride
    2.

    With ``position`` the last map goes through one more stage, and past it:
    :math:`y = x + F(x)`.

    Args:
        in_channels: channels of the input.
        widths: channels behind each stage.
        stages: a word per stage, with one C each.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        position: word of the conditional position embedding F, or None for none.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; height and width,
        multiples of ``.stride``, are divided by it.

    Attributes:
        stride: how many pixels of the input a step of the output is.

    Raises:
        ValueError: not as many ``widths`` as ``stages``, or a word of other letters; a size of the
            input that the stride does not divide.

    Source: Spikformer's SPS (arXiv 2209.15425), Spikingformer's tokenizer (arXiv 2304.11954), CML
    (arXiv 2305.05954).
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        stages: Sequence[str],
        spiking_neuron: NeuronFactory | None = None,
        *,
        position: str | None = None,
    ):
        super().__init__()
        widths = checks.shape("widths", widths)
        if len(widths) != len(stages):
            raise ValueError(
                f"widths must have one entry per stage, got {len(widths)} for {len(stages)} stages"
            )
        channels = (checks.integer("in_channels", in_channels, at_least=1), *widths)
        self.stages = nn.ModuleList(
            _stage(word, *pair, spiking_neuron)
            for word, pair in zip(stages, zip(channels, widths, strict=False), strict=True)
        )
        if position is not None and position.count("C") != 1:
            raise ValueError(f"position must be a word with one C (convolution), got {position!r}")
        self.position = (
            None if position is None else _stage(position, widths[-1], widths[-1], spiking_neuron)
        )
        self.stride = 2 ** sum(word.count("P") for word in stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_stride(x, self.stride)
        for stage in self.stages:
            x = stage(x)
        return x if self.position is None else x + self.position(x)


def check_stride(x: torch.Tensor, stride: int) -> None:
    """Raise if ``stride`` does not divide the height and width of ``x``."""
    if x.shape[-1] % stride or x.shape[-2] % stride:
        raise ValueError(
            f"height and width of x must be multiples of {stride}, got {list(x.shape[-2:])}"
        )


def _stage(
    word: str, in_channels: int, out_channels: int, spiking_neuron: NeuronFactory | None
) -> nn.Sequential:
    if word.count("C") != 1 or len(set(word)) != len(word) or not set(word) <= set("CNP"):
        raise ValueError(
            f"stages must be words with one C (convolution) and at most one N (neuron) and P "
            f"(pooling), got {word!r}"
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for letter in word:
        if letter == "C":
            parts["project"] = ConvBN(in_channels, out_channels, 3)
        elif letter == "N":
            parts["neuron"] = new_neuron(spiking_neuron)
        else:
            parts["pool"] = host.layer.MaxPool2d(3, 2, 1)
    return nn.Sequential(parts)
