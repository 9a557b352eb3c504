"""Masks of pruned weights, as parametrizations of ``torch.nn.utils.parametrize``.

A pruned layer keeps its parameter, and ``layer.weight`` is a view of it. The parameter itself holds
the zeros, so that no second copy of the weights exists; the parametrization beside it holds one
byte per weight, which says where the zeros have to stay. While compression goes on the mask is open
and gradients reach every weight, so that a zero can come back. Once it is closed, gradients of cut
weights are zero.

The state dict of a pruned layer has ``parametrizations.weight.original`` for ``weight`` and
``parametrizations.weight.0.mask`` beside it. :func:`make_permanent` restores the plain names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from .layers import is_prunable
from .selection import hold_

__all__ = ["WeightMask", "close", "density", "make_permanent", "mask_of", "masked_layers"]


class _MaskGradient(torch.autograd.Function):
    """The weight as it is; its gradient only where the mask is set."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(mask)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return grad * mask, None
        kept = grad.clone()  # the incoming gradient may be somebody else's too
        hold_(kept, mask)
        return kept, None


class WeightMask(nn.Module):
    """The mask of one weight: boolean, True where the weight is kept.

    Args:
        weight: the weight that the mask belongs to.
    """

    mask: torch.Tensor

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        #: True while the zeros have to stay; False while weights can come back
        self.closed = False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return _MaskGradient.apply(weight, self.mask) if self.closed else weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def get_extra_state(self) -> dict[str, bool]:
        return {"closed": self.closed}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.closed = bool(state["closed"])

    def extra_repr(self) -> str:
        return f"{'closed' if self.closed else 'open'}"


def mask_of(module: Any) -> WeightMask | None:
    """The mask of ``module.weight``, or None where it has none."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    for entry in module.parametrizations.weight:
        if isinstance(entry, WeightMask):
            return entry
    return None


def own_mask(module: Any) -> WeightMask:
    """The mask of ``module.weight`` where there is one, as in every layer of a pruner."""
    mask = mask_of(module)
    if mask is None:
        raise RuntimeError(f"{module} has lost the mask that the pruner gave it")
    return mask


def parameter_of(module: Any) -> nn.Parameter:
    """The parameter behind ``module.weight``."""
    if parametrize.is_parametrized(module, "weight"):
        return module.parametrizations.weight.original
    return module.weight


def check_unpruned(name: str, module: Any) -> None:
    """Raise if somebody else computes or prunes the weight of ``module``.

    Raises:
        ValueError: the module is pruned already, or its weight is parametrized.
    """
    if mask_of(module) is not None:
        raise ValueError(
            f"layer {name!r} is pruned already: call sj_ext.pruning.make_permanent(model) to keep "
            "its zeros as plain weights before a new pruner is built"
        )
    if any(isinstance(h, prune.BasePruningMethod) for h in module._forward_pre_hooks.values()) or (
        hasattr(module, "weight_mask")
    ):
        raise ValueError(
            f"layer {name!r} is pruned already by torch.nn.utils.prune: call "
            "torch.nn.utils.prune.remove(module, 'weight') first"
        )
    if parametrize.is_parametrized(module, "weight"):
        kinds = [type(p).__name__ for p in module.parametrizations.weight]
        raise ValueError(
            f"the weight of layer {name!r} is parametrized by {kinds}: a zero of the parameter "
            "would be no zero of the weight. Remove the parametrization or leave the layer out"
        )
    if not isinstance(getattr(module, "weight", None), nn.Parameter):
        raise ValueError(
            f"the weight of layer {name!r} is no parameter (weight_norm and spectral_norm compute "
            "it before each forward): remove what computes it, or leave the layer out"
        )


def attach(module: Any, mask: WeightMask | None = None) -> WeightMask:
    """Give ``module.weight`` a mask (or share one); the parameter stays the same object."""
    mask = WeightMask(module.weight.detach()) if mask is None else mask
    parametrize.register_parametrization(module, "weight", mask)
    return mask


def masked_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, WeightMask]]:
    """Name, module and mask of every masked layer, in the model's own order."""
    for name, module in model.named_modules():
        if (mask := mask_of(module)) is not None:
            yield name, module, mask


@torch.no_grad()
def close(module: nn.Module) -> None:
    """Close the mask of ``module``: its zeros are put back and stay."""
    mask = own_mask(module)
    hold_(parameter_of(module).detach(), mask.mask)
    mask.closed = True


@torch.no_grad()
def make_permanent(model: nn.Module) -> nn.Module:
    """Leave plain layers with zeros where the masks were; the inverse of building a pruner.

    Parameters stay the same objects, so that an optimizer goes on with them. Without a mask nothing
    holds the zeros: further training fills them.

    Args:
        model: a model (or a part of one) with masked layers, changed in place.

    Returns:
        ``model``.

    Raises:
        ValueError: no layer of the model is masked.
    """
    found = list(masked_layers(model))
    if not found:
        raise ValueError("model has no masked layer: nothing is pruned, or it is permanent already")
    for _, module, mask in found:
        parameter = parameter_of(module)
        if mask.closed:
            hold_(parameter.detach(), mask.mask)
        _detach(module)
    return model


def _detach(module: Any) -> None:
    """Make ``module.weight`` a plain parameter again.

    ``parametrize.remove_parametrizations`` deletes the property from the class, which a deep copy
    of the module shares; so the module gets its own class back instead.
    """
    parameter = module.parametrizations.weight.original
    if list(module.parametrizations) == ["weight"]:
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    else:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    # first, as in every prunable layer: optimizers number parameters in this order
    rest = {name: p for name, p in module._parameters.items() if name != "weight"}
    module._parameters.clear()
    module.register_parameter("weight", parameter)
    module._parameters.update(rest)


@torch.no_grad()
def density(model: nn.Module) -> float:
    """Share of the weights of all linear and convolutional layers that are kept.

    Weights behind a closed mask are kept where the mask is set; all others where they are not zero.
    A weight that several layers share counts once. Biases and normalisation do not count.

    Args:
        model: any model, with or without masks.

    Raises:
        ValueError: the model has no linear or convolutional layer.
    """
    kept = total = 0
    seen = set()
    for module in model.modules():
        if not is_prunable(module):
            continue
        parameter = parameter_of(module)
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        mask = mask_of(module)
        kept += int(
            mask.mask.count_nonzero() if mask and mask.closed else parameter.count_nonzero()
        )
        total += parameter.numel()
    if not total:
        raise ValueError("model has no linear or convolutional layer with a weight")
    return kept / total
