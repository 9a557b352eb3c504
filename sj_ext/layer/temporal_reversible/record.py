"""What the forward pass leaves behind: bits, a few exact potentials, and how to check a replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ops.bits import pack_bits, unpack_bits

__all__ = ["Bits", "Fingerprints", "anchor_steps", "relative_differences"]

#: elements of an output that are remembered to recognise it
FINGERPRINT = 32


@dataclass(frozen=True)
class Bits:
    """Layout of a packed mask, so that it comes back with the strides that it had.

    Convolutions choose their kernels by memory format; only with the same strides does a level
    compute the same bits again.
    """

    shape: tuple[int, ...]
    #: dimensions from the largest stride to the smallest
    order: tuple[int, ...]

    @classmethod
    def like(cls, tensor: torch.Tensor) -> Bits:
        """The layout of a tensor."""
        strides = tensor.stride()
        # Dimensions of one element may have any stride; they stay where they are.
        order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))
        return cls(tuple(tensor.shape), tuple(order))

    def ordered(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of a tensor of this layout that is contiguous where the tensor is dense."""
        return tensor.permute(self.order)

    def restored(self, ordered: torch.Tensor) -> torch.Tensor:
        """The tensor that :meth:`ordered` made a view of."""
        return ordered.permute([self.order.index(d) for d in range(len(self.shape))])

    def pack(self, mask: torch.Tensor) -> torch.Tensor:
        """One bit per element."""
        return pack_bits(self.ordered(mask))

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """The mask, with its strides."""
        return self.restored(unpack_bits(packed, [self.shape[d] for d in self.order]))


def anchor_steps(
    last: int, smallest_decay: float, dtype: torch.dtype, tolerance: float
) -> frozenset[int]:
    """Steps whose potential is kept exactly, so that inversion rebuilds the others well enough.

    With unit roundoff e, potentials of at most M and a decay of magnitude a, j inversions
    u[t-1] = (u[t] - f[t]) / a from an exact potential leave an error of at most

        e M (1 + 3 a) (a^-1 + ... + a^-j),

    see ``docs/concepts/reversibility.md``. Steps ``last, last - K, last - 2 K, ...`` are kept, with
    the largest K for which K - 1 inversions stay within ``tolerance * M``.
    """
    roundoff = torch.finfo(dtype).eps / 2
    error, power, inversions = 0.0, 1.0, 0
    while inversions < last:
        power /= smallest_decay
        error += roundoff * (1 + 3 * smallest_decay) * power
        if not error <= tolerance:
            break
        inversions += 1
    return frozenset(range(last, -1, -(inversions + 1)))


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
