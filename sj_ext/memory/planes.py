"""Small integers in floating-point tensors, held as bit planes; anything else, held as it is.

Spikes are 0 or 1, and what residual connections add up are small sums of spikes. Plane p of a
tensor holds the bit of weight ``2 ** p`` of every element, at one bit per element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..ops.bits import pack_bits, unpack_bits

__all__ = ["MOST_PLANES", "Held", "hold", "hold_slices", "planes_needed", "slice_sizes"]

#: integers above ``2 ** MOST_PLANES - 1`` are held as they are
MOST_PLANES = 8

# looked at first, so that a tensor of real numbers is told without reading all of it
_SAMPLE = 64


@dataclass(frozen=True)
class Held:
    """One tensor as a backward pass finds it again: bit planes, or the tensor itself."""

    shape: torch.Size
    dtype: torch.dtype
    #: bit planes from the lowest weight to the highest, or the one tensor itself
    tensors: tuple[torch.Tensor, ...]
    packed: bool

    def get(self, tensors: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """The tensor, from its planes; ``tensors`` where they were kept elsewhere meanwhile."""
        tensors = self.tensors if tensors is None else tensors
        if not self.packed:
            return tensors[0]
        whole = _unpack(tensors[0], self.shape, self.dtype) if tensors else None
        if whole is None:
            device = self.tensors[0].device if self.tensors else None
            return torch.zeros(self.shape, dtype=self.dtype, device=device)
        for place, plane in enumerate(tensors[1:], start=1):
            whole.add_(_unpack(plane, self.shape, self.dtype), alpha=2**place)
        return whole

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(t.numel() * t.element_size() for t in self.tensors)


def planes_needed(values: torch.Tensor) -> int | None:
    """How many planes hold ``values`` exactly; None if they are no integers of 0 to 255."""
    return _quantised(values)[1]


def hold(values: torch.Tensor) -> Held:
    """``values`` as bit planes if that loses nothing, else ``values`` itself."""
    values = values.detach()
    small, planes = _quantised(values)
    if small is None or planes is None:
        return Held(values.shape, values.dtype, (values,), packed=False)
    tensors = tuple(pack_bits((small & 2**place).bool()) for place in range(planes))
    return Held(values.shape, values.dtype, tensors, packed=True)


def hold_slices(values: torch.Tensor, axis: int, sizes: Sequence[int]) -> list[Held]:
    """:func:`hold` of every slice of ``values`` along ``axis``."""
    return [hold(part) for part in values.detach().split(list(sizes), axis)]


def slice_sizes(total: int, slices: int) -> list[int]:
    """Sizes of at most ``slices`` slices of ``total``, as equal as can be and none empty."""
    slices = max(1, min(slices, total))
    return [total // slices + (place < total % slices) for place in range(slices)]


def _quantised(values: torch.Tensor) -> tuple[torch.Tensor | None, int | None]:
    if not values.is_floating_point() or values.numel() == 0:
        return None, None
    sample = values.reshape(-1)[:_SAMPLE] if values.is_contiguous() else values.flatten()[:_SAMPLE]
    if not bool((sample == sample.to(torch.uint8)).all()):
        return None, None
    small = values.to(torch.uint8)
    # one look at both answers: on a GPU every look waits for the device
    exact, largest = torch.stack(((small == values).all().long(), small.max().long())).tolist()
    if not exact:
        return None, None
    return small, max(1, int(largest).bit_length())


def _unpack(plane: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return unpack_bits(plane, shape).to(dtype)
