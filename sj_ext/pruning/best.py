"""The best weights of a stage, kept beside those that train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from . import masks, sharding

__all__ = ["restore", "take"]


Places = Sequence[tuple[nn.Module, str]]


def take(model: nn.Module, places: Places, score: float) -> dict[str, Any]:
    """What :func:`restore` needs: the kept weights, and every other parameter and buffer.

    Args:
        model: the network.
        places: the masked parameters: module, and name there.
        score: how good it is.
    """
    ours = {id(getattr(module, name)) for module, name in places}
    rest = {
        name: sharding.local(tensor).detach().clone()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if id(tensor) not in ours
    }
    kept = []
    for module, name in places:
        weight, mask = _here(module, name)
        kept.append(weight[mask])
    return {"score": score, "kept": kept, "rest": rest}


@torch.no_grad()
def restore(model: nn.Module, places: Places, best: dict[str, Any]) -> None:
    """Put back what :func:`take` took, under the same masks."""
    for (module, name), kept in zip(places, best["kept"], strict=True):
        weight, mask = _here(module, name)
        weight[mask] = kept.to(weight)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in best["rest"].items():
        here = sharding.local(named[name]).detach() if name in named else None
        if here is not None and here.shape == tensor.shape:
            here.copy_(tensor)


def _here(module: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What this process holds of a parameter and of its mask."""
    parameter = getattr(module, name)
    mask = masks.own_mask(module, name).mask
    return sharding.local(parameter).detach(), sharding.part_of(mask, parameter)
