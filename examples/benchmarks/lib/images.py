"""Real images for the tables: CIFAR-10 from ``--data-dir``, or scikit-learn's digits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks.framework.record import Context
from data import cifar10, digits
from torch.nn import functional as F


class Images(NamedTuple):
    """Standardised images ``[N, C, side, side]`` (or event frames) and their labels ``[N]``."""

    x: torch.Tensor
    y: torch.Tensor

    def batches(self, size: int = 250):
        """Images and labels in batches, in order."""
        return list(zip(self.x.split(size), self.y.split(size), strict=True))


def load(
    context: Context, side: int = 16, train: int | None = None, test: int | None = None
) -> tuple[Images, Images]:
    """The first ``train`` and ``test`` images (None: all), each averaged down to ``side`` pixels.

    Every channel has mean 0 and variance 1 over the training images. Digits have one channel.
    """
    return _load(context.data_dir, side, train, test)


@functools.cache
def _load(data_dir: Path | None, side: int, train: int | None, test: int | None):
    parts = [scaled(x, side) for x in pixels(data_dir, train, test)]
    mean = parts[0].x.mean((0, 2, 3), keepdim=True)
    std = parts[0].x.std((0, 2, 3), keepdim=True)
    return tuple(Images((part.x - mean) / std, part.y) for part in parts)


def pixels(
    data_dir: Path | None, train: int | None = None, test: int | None = None
) -> tuple[Images, Images]:
    """Images in [0, 1] as they are: 32 x 32 in colour, or digits of 8 x 8 in grey."""
    if data_dir is None:
        (x, y), (x_test, y_test) = (split.tensors for split in digits())
        return Images(x[:train], y[:train]), Images(x_test[:test], y_test[:test])
    splits = cifar10(data_dir, True, train), cifar10(data_dir, False, test)
    return tuple(Images(x.float() / 255, y) for x, y in splits)


def scaled(images: Images, side: int) -> Images:
    """Averaged down, or enlarged bilinearly, to ``side`` pixels."""
    if images.x.shape[-1] >= side:
        return Images(F.adaptive_avg_pool2d(images.x, side), images.y)
    return Images(F.interpolate(images.x, size=side, mode="bilinear"), images.y)


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flipped left to right at random, and moved by at most an eighth of the side, on zeros.

    Args:
        x: ``[N, *, H, W]``; what belongs to one image moves together.
        generator: of the CPU.
    """
    reach = x.shape[-1] // 8
    flip = torch.rand(len(x), generator=generator) < 0.5
    top, left = torch.randint(0, 2 * reach + 1, (2, len(x), 1), generator=generator)
    rows = top + torch.arange(x.shape[-2])
    columns = left + torch.arange(x.shape[-1])
    columns[flip] = columns[flip].flip(1)
    padded = F.pad(x.flatten(1, -3), (reach, reach, reach, reach))
    image = torch.arange(len(x))[:, None, None]
    # indexed axes go first: [N, H, W, *]
    moved = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).reshape(x.shape)
