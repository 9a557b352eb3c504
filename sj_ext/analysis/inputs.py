"""What the layers of a network read: spikes, whole numbers or real values, and how many."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from .. import checks
from ..arguments import checked
from ..layer.attention import MatrixProduct
from ..observe import at_rest, watching

__all__ = ["LayerInput", "layer_inputs"]

#: from the least general kind to the most
_KINDS = ("binary", "integer", "real")
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, MatrixProduct)


class LayerInput(NamedTuple):
    """What one layer read."""

    #: the layer's name in the network
    name: str
    #: ``'binary'`` (0 and 1), ``'integer'`` (sums of spikes, or signed ones) or ``'real'``
    kind: str
    #: mean share of the elements that are not 0
    rate: float


@checked
def layer_inputs(model: nn.Module, x: torch.Tensor) -> tuple[LayerInput, ...]:
    """Say for every convolution, linear layer and product of an attention what it reads.

    A network is spike-driven where all layers behind the first read binary inputs: they add weights
    and multiply nothing. Sums of spikes (spike-element-wise shortcuts) are whole numbers, so that a
    layer adds a weight as often; real values are multiplied. A product of two activations needs
    spikes on one side only: the entry is of the side that is nearer to spikes.

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

    def look(name: str, layer: nn.Module, x: Any, y: torch.Tensor) -> None:
        sides = x if isinstance(layer, MatrixProduct) else (x,)
        found = min(map(_described, sides), key=lambda side: _KINDS.index(side[0]))
        seen.setdefault(name, []).append(found)

    layers = {name: m for name, m in model.named_modules() if isinstance(m, _LAYERS)}
    with at_rest(model), watching(layers, look):
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
