"""What a pruner's state dict says of the network: that it is this one, and where its zeros are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from . import bits, masks
from .wrappers import plain_name

__all__ = ["load_masks", "packed_masks", "require_same"]


def packed_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every mask of a network, a bit per weight."""
    return {
        plain_name(f"{layer}.{name}"): bits.pack(mask.mask)
        for layer, _, name, mask in masks.all_masks(model)
    }


def load_masks(model: nn.Module, packed: Mapping[str, torch.Tensor] | None) -> None:
    """The inverse of :func:`packed_masks`; None, of a state of 0.1, takes the zeros themselves."""
    if packed is None:
        for layer, module, name, mask in masks.all_masks(model):
            mask.load(masks.from_zeros(getattr(module, name), layer))
        return
    parameters = {
        plain_name(f"{layer}.{name}"): (module, name)
        for layer, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    for full, entry in packed.items():
        module, name = parameters[full]
        mask = masks.mask_of(module, name) or masks.attach(module, name)
        mask.load(bits.unpack(entry, getattr(module, name)))


def require_same(mine: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise unless a state was taken of such a pruner, of such a network.

    Raises:
        ValueError: it has another network, budget, schedule or pruner; with the first difference.
    """
    layers = {plain_name(name): shape for name, shape in other["layers"].items()}
    for key, value in mine.items():
        there = layers if key == "layers" else other[key]
        if there != value:
            what = "another network" if key == "layers" else f"another {key}"
            raise ValueError(f"the checkpoint is of {what}: it has {_difference(there, value)}")


def _difference(there: Any, here: Any) -> str:
    """The first difference, in words: what the checkpoint has and what is here."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *here]:
            if there.get(key) != here.get(key):
                return (
                    f"{key!r}: {there.get(key, 'nothing')} where this pruner has "
                    f"{here.get(key, 'nothing')}"
                )
        return f"the order {list(there)} where this pruner has {list(here)}"
    return f"{there!r} where this pruner has {here!r}"
