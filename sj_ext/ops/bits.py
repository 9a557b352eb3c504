"""Boolean tensors at one bit per element.

What a spike or a rectangular surrogate's window is worth to a backward pass is one bit; PyTorch's
``bool`` spends a byte on it. Element ``8 k + i`` of the mask, counted in row-major order, becomes
bit ``i`` (the bit of weight ``2 ** i``) of byte ``k``; the unused bits of the last byte are 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch

__all__ = ["keep_where_bits", "pack_bits", "unpack_bits"]

_LITTLE_ENDIAN = sys.byteorder == "little"

# Eight masks in a row are eight bytes of 0 or 1: one 64-bit integer. Multiplied by this constant,
# mask i moves to bit 56 + i. No two of the 64 shifted copies meet in one bit, so nothing carries.
_GATHER = 0x0102040810204080

# The eight masks of every byte value, again as one 64-bit integer.
_BYTE_TO_MASKS = (
    (torch.arange(256)[:, None] >> torch.arange(8) & 1).to(torch.uint8).view(torch.int64).flatten()
)


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Pack a boolean mask at one bit per element.

    Args:
        mask: a ``bool`` tensor of any shape and layout, on any device.

    Returns:
        ``uint8`` tensor of ``ceil(mask.numel() / 8)`` elements on the device of ``mask``.

    Raises:
        TypeError: ``mask`` is not a ``bool`` tensor.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a torch.bool tensor, got {mask.dtype}")
    flat = mask.detach().reshape(-1).contiguous()  # a row of every second element stays a view
    rest = flat.numel() % 8
    if rest == 0:
        return _pack_whole_bytes(flat)
    whole = flat.numel() - rest
    tail = torch.nn.functional.pad(flat[whole:], (0, 8 - rest))
    return torch.cat((_pack_whole_bytes(flat[:whole]), _pack_whole_bytes(tail)))


def unpack_bits(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The mask that :func:`pack_bits` packed.

    Args:
        packed: what :func:`pack_bits` returned.
        shape: shape of the mask.

    Returns:
        ``bool`` tensor of shape ``shape``, contiguous, on the device of ``packed``.

    Raises:
        TypeError: ``packed`` is not a ``uint8`` tensor.
        ValueError: ``packed`` does not have the size that belongs to ``shape``.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be a torch.uint8 tensor, got {packed.dtype}")
    numel = math.prod(shape)
    if packed.dim() != 1 or packed.numel() != (numel + 7) // 8:
        raise ValueError(
            f"packed must have shape [{(numel + 7) // 8}] to hold a mask of shape {list(shape)}, "
            f"got {list(packed.shape)}"
        )
    return _unpack_whole_bytes(packed)[:numel].view(tuple(shape))


def keep_where_bits(
    packed: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """``values`` times the mask that :func:`pack_bits` packed, whose shape is that of ``values``.

    Args:
        packed: what :func:`pack_bits` returned.
        values: what is kept where the mask is True.
        out: where to write the result, of the shape of ``values`` and a dtype as wide or wider.

    Raises:
        TypeError: ``packed`` is not a ``uint8`` tensor.
        ValueError: ``packed`` does not have the size that belongs to the shape of ``values``.
    """
    mask = unpack_bits(packed, values.shape)
    if not _eager(packed) or packed.device.type != "cpu":
        return torch.mul(values, mask, out=out)
    # on a CPU a product of two dtypes makes a wide copy of the mask first, slowly from bool
    kept = torch.empty_like(values) if out is None else out
    return kept.copy_(mask.view(torch.uint8)).mul_(values)


def _pack_whole_bytes(flat: torch.Tensor) -> torch.Tensor:
    if _eager(flat) and flat.numel():
        if flat.storage_offset() % 8:
            flat = flat.clone()
        return (flat.view(torch.int64) * _GATHER).view(torch.uint8)[7::8].contiguous()
    # For a compiler: plain arithmetic, which it fuses with what made the mask.
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=flat.device)
    return (flat.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def _unpack_whole_bytes(packed: torch.Tensor) -> torch.Tensor:
    if _eager(packed) and packed.device.type == "cpu":
        return _BYTE_TO_MASKS.index_select(0, packed.to(torch.int32)).view(torch.bool)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[:, None] & weights).ne(0).view(-1)


def _eager(tensor: torch.Tensor) -> bool:
    """Whether the bytes of ``tensor`` may be looked at as other types: not while it is traced."""
    traced = torch.compiler.is_compiling() or type(tensor) is not torch.Tensor
    return _LITTLE_ENDIAN and not traced
