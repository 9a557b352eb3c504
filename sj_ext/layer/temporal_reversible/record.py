"""What the forward pass leaves behind: bits, a few exact potentials, and how to check a replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ops.bits import pack_bits, unpack_bits

__all__ = ["Bits", "anchor_steps", "fingerprint", "relative_difference"]

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

    def pack(self, mask: torch.Tensor) -> torch.Tensor:
        """One bit per element."""
        return pack_bits(mask.permute(self.order))

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """The mask, with its strides."""
        permuted = unpack_bits(packed, [self.shape[d] for d in self.order])
        return permuted.permute([self.order.index(d) for d in range(len(self.shape))])


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


def fingerprint(output: torch.Tensor) -> torch.Tensor:
    """A few elements from all over a tensor."""
    numel = output.numel()
    # A step next to the golden section of the size meets every dimension at changing places.
    step = max(1, round(numel * 0.6180339887))
    while math.gcd(step, numel) != 1:
        step += 1
    places = torch.arange(min(FINGERPRINT, numel), device=output.device) * step % max(numel, 1)
    return output.detach()[torch.unravel_index(places, output.shape)]


def relative_difference(again: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """How far two fingerprints are apart, in units of their size; equal infinities are equal."""
    same = (again == before) | (again.isnan() & before.isnan())
    again, before = again.float(), before.float()
    difference = torch.where(same, 0.0, again - before).norm()
    size = torch.maximum(torch.where(same, 0.0, again).norm(), before.nan_to_num().norm())
    return torch.where(difference == 0, 0.0, difference / size)


def sum_to(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The sum over all dimensions that ``shape`` was broadcast along."""
    return tensor.sum_to_size(shape)
