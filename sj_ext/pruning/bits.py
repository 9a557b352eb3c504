"""Masks in checkpoints: a bit per weight."""

from __future__ import annotations

import numpy as np
import torch

from .sharding import blank_mask

__all__ = ["pack", "unpack"]


def pack(mask: torch.Tensor) -> torch.Tensor:
    """Eight entries of a boolean tensor in a byte, in the order of its indices."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy()))


def unpack(packed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`pack`, in the shape, layout and on the device of ``like``."""
    flat = np.unpackbits(packed.cpu().numpy(), count=like.numel()).astype(bool)
    mask = blank_mask(like)
    return mask.copy_(torch.from_numpy(flat).view(like.shape))
