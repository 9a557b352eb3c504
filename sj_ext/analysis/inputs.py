"""What the layers of a network read: spikes, whole numbers or real values, and how many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import checks
from ..layer.attention import SpikeProduct
from ..observe import at_rest

__all__ = ["LayerInput", "layer_inputs"]

#: from the least general kind to the most
_KINDS = ("binary", "integer", "real")


class LayerInput(NamedTuple):
    """What one layer read."""

    #: the layer's name in the network; for a product of an attention, with ``.q``, ``.k`` or ``.v``
    name: str
    #: ``'binary'`` (0 and 1), ``'integer'`` (sums of spikes, or signed ones) or ``'real'``
    kind: str
    #: mean share of the elements that are not 0
    rate: float


def layer_inputs(model: nn.Module, x: torch.Tensor) -> tuple[LayerInput, ...]:
    """Say for every convolution, linear layer and product of spikes what it reads.

    A network is spike-driven where all layers behind the first read binary inputs: they add weights
    and multiply nothing. Sums of spikes (spike-element-wise shortcuts) are whole numbers, so that a
    layer adds a weight as often; real values are multiplied.

    The network runs once, from rest and in evaluation mode, and is left as it was.

    Args:
        model: any network of PyTorch and SpikingJelly layers; see :func:`fuse` for what changes in
            inference.
        x: one batch as the network takes it.

    Returns:
        One entry per layer, in the order in which they first ran; over several calls of a layer the
        most general kind and the mean rate.

    Raises:
        TypeError: ``model`` is no module.
        RuntimeError: no layer that counts has run.
    """
    checks.module("model", model)
    seen: dict[str, list[tuple[str, float]]] = {}

    def look(names: tuple[str, ...]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            for name, value in zip(names, args, strict=False):
                seen.setdefault(name, []).append(_described(value))

        return hook

    with at_rest(model), contextlib.ExitStack() as handles:
        for name, module in model.named_modules():
            if isinstance(module, SpikeProduct):
                names = tuple(f"{name}.{operand}" for operand in "qkv")
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                names = (name,)
            else:
                continue
            handles.callback(module.register_forward_pre_hook(look(names)).remove)
        model(x)
    if not seen:
        raise RuntimeError("model has run no convolution and no linear layer")
    return tuple(
        LayerInput(
            name,
            max((kind for kind, _ in calls), key=_KINDS.index),
            sum(rate for _, rate in calls) / len(calls),
        )
        for name, calls in seen.items()
    )


def _described(value: torch.Tensor) -> tuple[str, float]:
    rate = float((value != 0).double().mean())
    if bool(((value == 0) | (value == 1)).all()):
        return "binary", rate
    return ("integer" if bool((value == value.round()).all()) else "real"), rate
