"""Fixing sizes that are known late, before training code asks for them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from . import checks
from .observe import at_rest

__all__ = ["materialize"]

M = TypeVar("M", bound=nn.Module)


def materialize(model: M, *example_inputs: Any, **named: Any) -> M:
    """Give every parameter of ``model`` that is without a size the one that its input asks for.

    The network runs once, from reset, in evaluation mode and without gradients. Nothing else of it
    changes: neither its state and modes nor its buffers, and of PyTorch's random numbers only those
    are drawn that the parameters start from. It works in every mode (``torch.inference_mode`` too)
    and on every device, ``'meta'`` included.

    Args:
        model: any network; PyTorch's own lazy layers get their sizes as well.
        *example_inputs: one batch as the network takes it; only shapes, dtypes and devices matter.
        **named: the same by name.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: a parameter is still without a size, since the input does not reach its layer.
    """
    checks.module("model", model)
    if not _without_size(model):
        return model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if _has_size(buffer)}
    with torch.inference_mode(False), at_rest(model):
        model(*example_inputs, **named)
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    left = _without_size(model)
    if left:
        raise ValueError(f"example_inputs do not reach the layers of {', '.join(left)}")
    return model


def _without_size(model: nn.Module) -> list[str]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in tensors if not _has_size(tensor)]


def _has_size(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, UninitializedBuffer | UninitializedParameter)
