"""Small integers in floating-point tensors, held as bit planes; anything else, held as it is.

Spikes are 0 or 1, and what residual connections add up are small sums of spikes. Plane p of a
tensor holds the bit of weight ``2 ** p`` of every element, at one bit per element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ops.bits import pack_bits, unpack_bits

__all__ = [
    "MOST_PLANES",
    "Held",
    "hold",
    "hold_slices",
    "planes_needed",
    "repeats",
    "shape_of",
    "slice_sizes",
]

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
    #: of the last axes every how many-th element is held, where the others are never read
    every: tuple[int, ...] = ()

    def get(self) -> torch.Tensor:
        """The tensor, with 0 where it is never read."""
        first = self.tensors[0]
        if not self.packed:
            return self._spread(first).expand(self.shape)
        whole = _unpack(first, self.shape, self.dtype)
        for place, plane in enumerate(self.tensors[1:], start=1):
            whole.add_(_unpack(plane, self.shape, self.dtype), alpha=2**place)
        return whole

    def _spread(self, held: torch.Tensor) -> torch.Tensor:
        if not self.every:
            return held
        shape = (*held.shape[: -len(self.every)], *self.shape[-len(self.every) :])
        whole = held.new_zeros(shape)
        whole[_places(self.every)] = held
        return whole


def shape_of(values: torch.Tensor) -> Held:
    """Zeros that stand for ``values`` where only their shape is asked for."""
    return Held(values.shape, values.dtype, (values.new_zeros(()),), packed=False)


def planes_needed(values: torch.Tensor) -> int | None:
    """How many planes hold ``values`` exactly; None if they are no integers of 0 to 255."""
    return _quantised(values)[1]


def hold(values: torch.Tensor, every: tuple[int, ...] = ()) -> Held:
    """``values`` as bit planes if that loses nothing, else ``values`` itself.

    Of what is held as it is, axis 0 is held once if it only repeats.

    Args:
        values: any tensor.
        every: of the last axes only every how many-th element is ever read.
    """
    values = values.detach()
    small, planes = _quantised(values)
    if small is None or planes is None:
        shape = values.shape
        if repeats(values):
            values = values[:1] if values.stride(0) == 0 else values[:1].clone()
        if every:
            values = values[_places(every)].clone()
        return Held(shape, values.dtype, (values,), packed=False, every=every)
    tensors = tuple(pack_bits((small & 2**place).bool()) for place in range(planes))
    return Held(values.shape, values.dtype, tensors, packed=True)


def hold_slices(
    values: torch.Tensor, axis: int, sizes: Sequence[int], every: tuple[int, ...] = ()
) -> list[Held]:
    """:func:`hold` of every slice of ``values`` along ``axis``."""
    return [hold(part, every) for part in values.detach().split(list(sizes), axis)]


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


def _places(every: tuple[int, ...]) -> tuple[Any, ...]:
    return (..., *(slice(None, None, step) for step in every))


def repeats(values: torch.Tensor) -> bool:
    """Whether axis 0 says the same several times over, as a still image shown at every step."""
    if values.dim() < 3 or len(values) < 2 or values.requires_grad:
        return False
    if values.stride(0) == 0:
        return True
    return bool(torch.equal(values[0, :1], values[1, :1]) and (values[1:] == values[:1]).all())


def _unpack(plane: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return unpack_bits(plane, shape).to(dtype)
