"""The branchless supernet's space: how large each kernel is, or that there is none."""

from __future__ import annotations

from ... import checks
from .space import Choice, Space

__all__ = ["SIZES", "branchless"]

#: what a learned cut can leave of a 5 x 5 kernel
SIZES = ("skip", "conv3", "conv5")


def branchless(stages: int = 3, blocks: int = 3) -> Space:
    """Two convolutions in each block, of 5 x 5, 3 x 3 or none; those with stride 2 are there.

    Args:
        stages: each begins with a block whose first convolution has stride 2.
        blocks: per stage.

    Raises:
        ValueError: an argument is below 1.

    Source: Yan et al., "Efficient spiking neural network design via neural architecture search",
    Neural Networks 173, 2024.
    """
    checks.integer("stages", stages, at_least=1)
    checks.integer("blocks", blocks, at_least=1)
    slots = {}
    for i in range(stages * blocks):
        slots[f"block{i}.head"] = Choice(SIZES[1:] if i % blocks == 0 else SIZES)
        slots[f"block{i}.tail"] = Choice(SIZES)
    return Space(f"branchless/{stages}x{blocks}", slots)
