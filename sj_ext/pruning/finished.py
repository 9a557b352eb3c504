"""A whole network with masks: the share that is kept, masks of one's own, what is left at last."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..arguments import checked
from . import sharding
from .layers import weight_sites
from .masks import ATTRIBUTE, all_masks, attach, check_unpruned, mask_of, mind_zeros, put_zeros
from .wrappers import plain_name, unwrapped

__all__ = ["density", "forget", "hand_over", "hold_masks", "make_permanent"]


@checked
def hold_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Hold zeros where masks from elsewhere say so, as after a pruner has finished.

    Cut weights become zero and stay zero under any optimizer, until :func:`make_permanent`.

    Args:
        model: any network.
        masks: per layer (its ``weight``) or parameter, by name, a boolean tensor in the shape of
            the parameter, for example ``[out, in]``, that is True where a weight is
            kept; ``weight_mask`` of ``torch.nn.utils.prune`` is one after ``.bool()``.

    Raises:
        TypeError: a mask is no boolean tensor.
        ValueError: there is no such layer, a mask has another shape, or the layer is pruned
            already. The model is then left as it was.
    """
    found = []
    for full, mask in masks.items():
        owner, _, name = full.rpartition(".")
        modules = dict(model.named_modules())
        if isinstance(getattr(modules.get(full), "weight", None), torch.Tensor):
            owner, name = full, "weight"
        parameter = getattr(modules.get(owner), name, None)
        if not isinstance(parameter, torch.Tensor):
            raise ValueError(f"masks: {full!r} is neither a layer with a weight nor a parameter")
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"masks[{full!r}] must be a boolean tensor, got {mask!r}")
        if mask.shape != parameter.shape:
            raise ValueError(
                f"masks[{full!r}] must have the shape {list(parameter.shape)} of its parameter, "
                f"got {list(mask.shape)}"
            )
        check_unpruned(owner, modules[owner], name)
        found.append((modules[owner], name, mask))
    for module, name, mask in found:
        own = attach(module, name)
        own.set(sharding.blank_mask(getattr(module, name)).copy_(mask))
        own.close()


@torch.no_grad()
def make_permanent(model: nn.Module) -> nn.Module:
    """Leave nothing but plain layers with zeros; the inverse of building a pruner.

    Parameters stay the same objects, so that an optimizer goes on with them. Without a mask nothing
    holds the zeros: further training fills them. A copy of a network that a pruner works on, such
    as an average of its weights, gets the zeros that the network has now.

    Args:
        model: a model (or a part of one) with masked layers, changed in place.

    Returns:
        ``model``.

    Raises:
        ValueError: no layer of the model is masked.
    """
    found = list(all_masks(model))
    if not found:
        raise ValueError("model has no masked layer: nothing is pruned, or it is permanent already")
    for _, module, name, mask in found:
        final = mask.closed_mask()
        if final is not None:
            put_zeros(getattr(module, name), final)
    forget(model)
    return model


def forget(model: nn.Module) -> None:
    """Take all masks away and leave the weights as they are."""
    for _, module, _, mask in list(all_masks(model)):
        mask.release()
        vars(module).pop(ATTRIBUTE, None)


@torch.no_grad()
def hand_over(model: nn.Module, average: nn.Module) -> nn.Module:
    """Put the zeros of a pruned network into an average of its weights.

    ::

        ema.update_parameters(model)
        ...
        hand_over(model, ema)  # before the average is evaluated, saved or exported

    An average of weights that were not always zero is not zero. Once the masks are closed, zeros
    that were handed over stay, since the average of zeros is zero.

    Args:
        model: the network that a pruner works on.
        average: a copy of it, or what holds the copy, such as
            ``torch.optim.swa_utils.AveragedModel`` or timm's ``ModelEmaV3``; changed in place.

    Returns:
        ``average``.

    Raises:
        ValueError: no layer of ``model`` is masked, or ``average`` lacks one of its weights.
    """
    parameters = {plain_name(name): p for name, p in average.named_parameters()}
    found = list(all_masks(unwrapped(model)))
    if not found:
        raise ValueError("model has no masked layer: nothing is pruned, or it is permanent already")
    for layer, _, name, mask in found:
        full = plain_name(f"{layer}.{name}" if layer else name)
        if full not in parameters:
            raise ValueError(f"average is no copy of model: it has no parameter {full!r}")
        final = mask.closed_mask()
        if final is not None:
            put_zeros(parameters[full], final)
    for module in average.modules():
        mind_zeros(module)
    return average


@torch.no_grad()
def density(model: nn.Module) -> float:
    """Share of the weights that is kept.

    Counted are the weights of linear and convolutional layers, of ``nn.MultiheadAttention``,
    ``nn.LSTM``, ``GRU`` and ``RNN``, and bare parameters that a pruner holds a mask of; biases and
    normalisation are not. Weights behind a closed mask are kept where the mask is set; all others
    where they are not zero. A weight that several layers share counts once. Of a network that
    ``fully_shard`` has split, every rank has to ask.

    Args:
        model: any model, with or without masks.

    Raises:
        ValueError: the model has no such weight.
    """
    kept = total = 0
    sites = weight_sites(model, none_is_fine=True).values()
    places = [(site.module, site.attribute) for site in sites]
    masked = [(module, name) for _, module, name, _ in all_masks(model)]
    matrices = [(m, n) for m, n in masked if getattr(m, n).dim() > 1 and n not in ("bias", "theta")]
    seen = set()
    for module, name in [*places, *matrices]:
        parameter = getattr(module, name)
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        mask = mask_of(module, name)
        if mask is not None and mask.closed:
            kept += parameter.numel() - mask.zeros
        else:
            kept += int(sharding.whole(parameter.detach()).count_nonzero())
        total += parameter.numel()
    if not total:
        raise ValueError("model has no linear or convolutional layer with a weight")
    return kept / total
