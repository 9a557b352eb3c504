"""Packed masks that come back with the strides that they had."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .bits import pack_bits, unpack_bits

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Layout of a packed mask, so that it comes back with the strides that it had.

    Convolutions choose their kernels by memory format; only with the same strides does a level
    compute the same bits again.
    """

    shape: tuple[int, ...]
    #: dimensions from the largest stride to the smallest
    order: tuple[int, ...]

    @classmethod
    def like(cls, tensor: torch.Tensor) -> Layout:
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
