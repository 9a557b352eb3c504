"""AutoST's space: depth and width of a spiking transformer, and each block's ratio and heads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from ... import checks
from .space import Choice, Gene, Space

__all__ = ["SIZES", "Candidate", "autost", "candidate", "genes_of"]


class _Size(NamedTuple):
    depths: range
    ratios: tuple[int, ...]
    widths: tuple[int, ...]


SIZES = {
    "tiny": _Size(range(1, 11), (3, 4, 5), (192, 256, 320, 384)),
    "small": _Size(range(2, 13), (3, 4, 5), tuple(range(256, 513, 64))),
    "base": _Size(range(4, 16), (3, 4, 5, 6), tuple(range(384, 769, 64))),
}
HEADS = (4, 8)


class Candidate(NamedTuple):
    """An architecture in the paper's words."""

    #: hidden over embedding width, a block each
    ratios: tuple[float, ...]
    #: attention heads, a block each
    heads: tuple[int, ...]
    #: embedding width
    width: int


def autost(size: str = "tiny") -> Space:
    """AutoST's space; a block beyond the depth has no ratio and no heads.

    Args:
        size: ``'tiny'``, ``'small'`` or ``'base'``.

    Raises:
        ValueError: ``size`` is unknown.

    Source: Wang et al., "AutoST: Training-free Neural Architecture Search for Spiking
    Transformers", ICASSP 2024 (arXiv 2307.00293).
    """
    sizes = SIZES[checks.choice("size", size, tuple(SIZES))]
    slots: dict[str, Choice] = {"depth": Choice(tuple(sizes.depths))}
    for i in range(sizes.depths[-1]):
        absent: tuple[Gene, ...] = () if i < sizes.depths[0] else (None,)
        slots[f"ratio{i}"] = Choice((*sizes.ratios, *absent))
    for i in range(sizes.depths[-1]):
        absent = () if i < sizes.depths[0] else (None,)
        slots[f"heads{i}"] = Choice((*HEADS, *absent))
    slots["width"] = Choice(sizes.widths)

    def draw(rng: random.Random) -> Sequence[Gene]:
        depth = rng.choice(sizes.depths)
        return genes_of(
            Candidate(
                tuple(rng.choice(sizes.ratios) for _ in range(depth)),
                tuple(rng.choice(HEADS) for _ in range(depth)),
                rng.choice(sizes.widths),
            ),
            sizes.depths[-1],
        )

    def repair(genes: tuple[Gene, ...]) -> Sequence[Gene]:
        """Blocks beyond the depth go; blocks that are missing get the first options."""
        deepest = sizes.depths[-1]
        if len(genes) != 2 * deepest + 2 or genes[0] not in sizes.depths:
            return genes
        fixed = list(genes)
        for i in range(deepest):
            for place, options in ((1 + i, sizes.ratios), (1 + deepest + i, HEADS)):
                if i >= int(genes[0]):  # type: ignore[arg-type]
                    fixed[place] = None
                elif fixed[place] is None:
                    fixed[place] = options[0]
        return fixed

    return Space(f"autost/{size}", slots, draw=draw, repair=repair)


def candidate(genes: Sequence[Gene]) -> Candidate:
    """The architecture in the paper's words."""
    told: list[Any] = list(genes)
    deepest, depth = (len(told) - 2) // 2, told[0]
    return Candidate(
        tuple(told[1 : 1 + depth]), tuple(told[1 + deepest : 1 + deepest + depth]), told[-1]
    )


def genes_of(found: Candidate, deepest: int) -> tuple[Gene, ...]:
    """The genes of a candidate in a space of that largest depth, the inverse of ``candidate``."""
    rest = (None,) * (deepest - len(found.ratios))
    return (len(found.ratios), *found.ratios, *rest, *found.heads, *rest, found.width)
