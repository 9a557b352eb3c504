"""What the rest of a network saves for its backward pass, as bit planes where that loses nothing.

Attention multiplies spikes with spikes, and a linear head saves what it is given. PyTorch hands
every such tensor to a hook, and what holds small integers is held as bits.
"""

from __future__ import annotations

from typing import Any

import torch

from .planes import Held, hold

__all__ = ["packed_saves"]

#: tensors of fewer elements are left alone
_SMALLEST = 1024


def packed_saves() -> Any:
    """A context in which saved tensors of small integers are held as bit planes."""
    return torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)


def _pack(x: torch.Tensor) -> Held | tuple[torch.Tensor, int]:
    if x.numel() >= _SMALLEST and x.is_floating_point() and x.layout is torch.strided:
        held = hold(x)
        if held.packed:
            return held
    return x, x._version


def _unpack(kept: Held | tuple[torch.Tensor, int]) -> torch.Tensor:
    if isinstance(kept, Held):
        return kept.get()
    x, version = kept
    if x._version != version:  # PyTorch itself does not look where there are hooks
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor of shape {list(x.shape)} is at version {x._version}, expected "
            f"version {version}"
        )
    return x
