"""A place in the order of weights, and what is done to the weights on either side of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import blocks
from .blocks import key_dtype, torch_kind


class Cut(NamedTuple):
    """A place in the order: the first weight that is kept. All keys below it are cut."""

    magnitude: float
    tensor: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A one-dimensional view of a dense tensor, in the order of its memory.

    Raises:
        ValueError: the tensor has gaps or overlaps.
    """
    tensor = tensor.detach()
    strides, sizes = tensor.stride(), tensor.shape
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], sizes[d] == 1))
    try:
        return tensor.permute(order).view(-1)
    except RuntimeError as error:
        raise ValueError(
            f"a weight must be dense in memory, got shape {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}"
        ) from error


def _bounds(cut: Cut, tensor: int, size: int, dtype: np.dtype) -> list[tuple[slice, float]]:
    """Parts of a tensor and the largest magnitude that is cut in each; below 0: none."""
    at = dtype.type(cut.magnitude)
    before = float(np.nextafter(at, dtype.type(-1))) if cut.magnitude > 0 else -1.0
    if tensor < cut.tensor:
        return [(slice(0, size), float(at))]
    if tensor > cut.tensor or cut.index == 0:
        return [(slice(0, size), before)]
    return [(slice(0, cut.index), float(at)), (slice(cut.index, size), before)]


def _above(piece: torch.Tensor, bound: float, dtype: np.dtype) -> torch.Tensor:
    """Where the magnitude exceeds ``bound``; a bound need not exist in the tensor's own dtype."""
    return piece.to(torch_kind(dtype)).abs() > bound


@torch.no_grad()
def zero_below_(tensors: Sequence[torch.Tensor], cut: Cut) -> None:
    """Set every weight below ``cut`` to zero, in place, in one pass."""
    dtype = key_dtype(tensors)
    for i, tensor in enumerate(tensors):
        for part, bound in _bounds(cut, i, len(tensor), dtype):
            piece = tensor[part]
            if bound == math.inf:
                piece.zero_()
            elif bound >= 0 and piece.dtype == torch_kind(dtype):
                torch.ops.aten.hardshrink.out(piece, bound, out=piece)
            elif bound >= 0:
                piece.mul_(_above(piece, bound, dtype))


@torch.no_grad()
def hold_(tensor: torch.Tensor, mask: torch.Tensor) -> None:
    """Set a weight to zero where its boolean mask is False, in place."""
    if tensor.device.type != "cpu" or tensor.stride() != mask.stride():
        tensor.mul_(mask)
        return
    # in blocks, and with bytes in place of booleans: on a CPU five times as fast as the line above
    bits = flat(mask).view(torch.uint8)
    for at in range(0, tensor.numel(), blocks.BLOCK):
        flat(tensor)[at : at + blocks.BLOCK].mul_(bits[at : at + blocks.BLOCK])


@torch.no_grad()
def cut_mask_(masks: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], cut: Cut) -> None:
    """Write True where a weight is at or above ``cut``, False below it."""
    for number, mask in enumerate(masks):
        cut_mask_one_(mask, tensors, number, cut)


@torch.no_grad()
def cut_mask_one_(
    mask: torch.Tensor, tensors: Sequence[torch.Tensor], number: int, cut: Cut
) -> None:
    """As :func:`cut_mask_`, for one of the tensors."""
    _mask_one_(mask, tensors[number], number, cut, key_dtype(tensors))


def _mask_one_(mask, tensor, number: int, cut: Cut, dtype: np.dtype) -> None:
    for part, bound in _bounds(cut, number, len(tensor), dtype):
        for at in range(part.start, part.stop, blocks.BLOCK):
            piece = slice(at, min(at + blocks.BLOCK, part.stop))
            mask[piece] = _above(tensor[piece], bound, dtype)


@torch.no_grad()
def scale_between_(
    tensors: Sequence[torch.Tensor], low: Cut, high: Cut, factors: Sequence[float]
) -> None:
    """Multiply the weights from ``low`` to below ``high`` by their tensor's factor, in place."""
    for i, tensor in enumerate(tensors):
        kept = torch.empty((2, len(tensor)), dtype=torch.bool, device=tensor.device)
        _mask_one_(kept[0], tensor, i, low, key_dtype(tensors))
        _mask_one_(kept[1], tensor, i, high, key_dtype(tensors))
        index = (kept[0] ^ kept[1]).nonzero().squeeze(1)
        if len(index):
            tensor[index] *= factors[i]
