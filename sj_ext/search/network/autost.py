r"""AutoST's transformers, by formula: parameters and operations of a candidate, with none built.

With width E, a map of :math:`L = (\text{side} / 4)^2` tokens, T steps and K classes, operations are
those that the public program's counter counts: multiplications of convolutions and linear layers,
two for every element that is normalised, one for every element that goes through a neuron or into a
pooling. Not counted there: the products of attention, so that heads change nothing, and shortcuts.

Source: Wang et al., "AutoST: Training-free Neural Architecture Search for Spiking Transformers",
ICASSP 2024 (arXiv 2307.00293).
"""

from __future__ import annotations

import itertools

from ... import checks
from ...arguments import checked
from ..space.autost import Candidate

__all__ = ["operations", "parameters"]


@checked
def parameters(candidate: Candidate, *, num_classes: int = 100, in_channels: int = 3) -> int:
    """How many parameters a candidate has.

    Args:
        candidate: ratios, heads and width.
        num_classes: K.
        in_channels: 3 for images.

    Raises:
        ValueError: the candidate is malformed.
    """
    checks.sizes(num_classes=num_classes, in_channels=in_channels)
    ratios, _, width = _checked(candidate)
    channels = (in_channels, width // 8, width // 4, width // 2, width)
    maps = itertools.pairwise(channels)
    stem = sum(9 * below * above + 2 * above for below, above in maps) + 9 * width**2 + 2 * width
    neurons = 3
    blocks = 0
    for ratio in ratios:
        hidden = int(width * ratio)
        blocks += 4 * (width**2 + 3 * width)  # query, key, value, projection, each with its norm
        blocks += width * hidden + 3 * hidden + hidden * width + 3 * width
        neurons += 7
    return stem + blocks + neurons + width * num_classes + num_classes


@checked
def operations(
    candidate: Candidate,
    *,
    num_classes: int = 100,
    in_channels: int = 3,
    image_size: int = 32,
    T: int = 4,
    batch: int | None = None,
    attention: bool = False,
) -> float:
    """Operations of one image.

    Args:
        candidate: ratios, heads and width.
        num_classes: K.
        in_channels: 3 for images.
        image_size: height and width, a multiple of 4.
        T: number of steps.
        batch: number of images that the program's counter had at once, over which it spreads a
            linear layer's biases; None counts a bias at every token.
        attention: whether the two products of attention count too, 2 T L^2 E a block.

    Raises:
        ValueError: the candidate is malformed or a size out of range.
    """
    checks.sizes(
        num_classes=num_classes, in_channels=in_channels, batch=1 if batch is None else batch
    )
    ratios, _, width = _checked(candidate)
    if checks.integer("image_size", image_size, at_least=4) % 4:
        raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
    checks.integer("T", T, at_least=1)
    tokens = (image_size // 4) ** 2
    total = _stem_operations(width, in_channels, image_size, T)
    element = T * tokens * width

    def linear(below: int, above: int, at: int = T * tokens) -> float:
        return at * below * above + (above * at if batch is None else above / batch)

    for ratio in ratios:
        hidden = int(width * ratio)
        inner = T * tokens * hidden
        total += element + 3 * (linear(width, width) + 3 * element) + element
        total += linear(width, width) + 2 * element
        total += element + linear(width, hidden) + 3 * inner
        total += linear(hidden, width) + 2 * element
        if attention:
            total += 2 * T * tokens**2 * width
    return total + linear(width, num_classes, 1)


def _stem_operations(width: int, in_channels: int, side: int, steps: int) -> float:
    channels = (in_channels, width // 8, width // 4, width // 2)
    area = steps * side * side
    total = 0.0
    for below, above in itertools.pairwise(channels):
        total += 9 * below * above * area + 3 * above * area
    total += area * channels[-1]  # the first pooling reads the third map
    half = area // 4
    total += 9 * channels[-1] * width * half + 3 * width * half
    quarter = area // 16
    return total + 9 * width * width * quarter + 2 * width * quarter


def _checked(candidate: Candidate) -> Candidate:
    ratios, heads, width = candidate
    if len(ratios) != len(heads) or not ratios:
        raise ValueError(
            f"candidate must have one ratio and one number of heads a block, got {len(ratios)} "
            f"ratios and {len(heads)} heads"
        )
    if width % 8 or any(width % h for h in heads):
        raise ValueError(
            f"candidate must have a width that 8 and every number of heads divide, got {width} "
            f"for heads {heads}"
        )
    return Candidate(tuple(ratios), tuple(heads), width)
