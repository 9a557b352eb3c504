"""The best weights of a stage, kept beside those that train on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import masks

__all__ = ["restore", "take"]


def take(model: nn.Module, modules: list[nn.Module], score: float) -> dict[str, Any]:
    """What :func:`restore` needs: the kept weights, and every other parameter and buffer."""
    ours = {id(masks.parameter_of(module)) for module in modules}
    ours |= {id(masks.own_mask(module).mask) for module in modules}
    rest = {
        name: tensor.detach().clone()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if id(tensor) not in ours
    }
    kept = [masks.parameter_of(m).detach()[masks.own_mask(m).mask] for m in modules]
    return {"score": score, "kept": kept, "rest": rest}


@torch.no_grad()
def restore(model: nn.Module, modules: list[nn.Module], best: dict[str, Any]) -> None:
    """Put back what :func:`take` took, under the same masks."""
    for module, kept in zip(modules, best["kept"], strict=True):
        weight = masks.parameter_of(module).detach()
        weight[masks.own_mask(module).mask] = kept.to(weight)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in best["rest"].items():
        if named[name].shape == tensor.shape:
            named[name].detach().copy_(tensor)
