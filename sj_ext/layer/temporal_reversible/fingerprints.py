"""A few elements of an output, to tell whether a level gave it again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["Fingerprints", "relative_differences"]

#: elements of an output that are remembered to recognise it
FINGERPRINT = 32


class Fingerprints:
    """A few elements from all over each level's output, to recognise it by."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}

    def of(self, output: torch.Tensor) -> torch.Tensor:
        """The fingerprint of an output: a vector of at most ``FINGERPRINT`` of its elements."""
        shape = tuple(output.shape)
        if shape not in self._places:
            self._places[shape] = self._choose(output.shape, output.device)
        return output.detach()[self._places[shape]]

    @staticmethod
    def _choose(shape: torch.Size, device: torch.device) -> tuple[torch.Tensor, ...]:
        numel = math.prod(shape)
        # A step next to the golden section of the size meets every dimension at changing places.
        step = max(1, round(numel * 0.6180339887))
        while math.gcd(step, numel) != 1:
            step += 1
        places = torch.arange(min(FINGERPRINT, numel)) * step % max(numel, 1)
        return tuple(x.to(device) for x in torch.unravel_index(places, shape))


def relative_differences(
    again: Sequence[torch.Tensor], before: Sequence[torch.Tensor]
) -> torch.Tensor:
    """How far fingerprints are apart, in units of their size; equal infinities are equal."""
    pairs = list(zip(again, before, strict=True))
    differences = torch.empty(len(pairs), device=pairs[0][0].device)
    for size in {len(a) for a, _ in pairs}:
        rows = [i for i, (a, _) in enumerate(pairs) if len(a) == size]
        differences[rows] = _row_differences(
            torch.stack([pairs[i][0].float() for i in rows]),
            torch.stack([pairs[i][1].float() for i in rows]),
        )
    return differences


def _row_differences(again: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    same = (again == before) | (again.isnan() & before.isnan())
    difference = torch.where(same, 0.0, again - before).norm(dim=1)
    size = torch.maximum(again.nan_to_num().norm(dim=1), before.nan_to_num().norm(dim=1))
    return torch.where(difference == 0, 0.0, difference / size)
