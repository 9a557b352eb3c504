"""How often each weight is used in a forward pass, and the multiplications that makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...observe import at_rest, watching
from ..layers import TRANSPOSED, weight_layers
from .base import LayerInfo, Linear, Resource

__all__ = ["Flops", "flops", "layer_positions", "positions"]


def positions(module: Any, x: torch.Tensor, out: torch.Tensor) -> int:
    """How often one weight of ``module`` is used to make ``out`` from ``x``."""
    if isinstance(module, nn.Linear):
        return out.numel() // module.out_features
    if isinstance(module, TRANSPOSED):
        return x.numel() // module.in_channels
    return out.numel() // module.out_channels


def layer_positions(model: nn.Module, example_input: torch.Tensor) -> dict[str, int]:
    """How often a weight of each layer is used in one forward pass of ``example_input``.

    The network runs once from reset, in evaluation mode without gradients, and is left as it was.

    Args:
        model: the network.
        example_input: one batch as the network takes it.

    Returns:
        A number per layer name: the positions at which the layer's weights are used.

    Raises:
        ValueError: a linear or convolutional layer does not run.
    """
    found: dict[str, int] = {}

    def count(name: str, module: nn.Module, x: torch.Tensor, out: torch.Tensor) -> None:
        found[name] = found.get(name, 0) + positions(module, x, out)

    with at_rest(model), watching(weight_layers(model), count):
        model(example_input)
    missing = [name for name in weight_layers(model) if name not in found]
    if missing:
        raise ValueError(f"example_input does not reach the layers {missing}")
    return found


class Flops(Linear):
    name = "flops"

    def __init__(self, example_input: torch.Tensor):
        super().__init__()
        self.example_input: torch.Tensor | None = example_input
        self.positions: dict[str, int] = {}

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        super().bind(model, layers)
        if self.example_input is not None:  # not kept alive
            self.positions = layer_positions(model, self.example_input)
            self.example_input = None

    def per_weight(self, layer: LayerInfo) -> float:
        return float(self.positions[layer.name])


def flops(example_input: torch.Tensor) -> Resource:
    """Sum over layers of MACs times kept share.

    Args:
        example_input: one batch as the network takes it.

    Raises:
        ValueError: from the pruner, where ``example_input`` does not reach a layer.
    """
    return Flops(example_input)
