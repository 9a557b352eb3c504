"""How often each weight is used in a forward pass, and the multiplications that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...arguments import checked
from ...observe import at_rest, watching
from ...products import operations, watching_products
from ..layers import TRANSPOSED, is_prunable, weight_sites
from .base import LayerInfo, Linear, Resource

__all__ = ["Flops", "flops", "layer_positions", "positions"]


def positions(module: Any, x: torch.Tensor, out: torch.Tensor) -> int:
    """How often one weight of ``module`` is used to make ``out`` from ``x``."""
    if isinstance(module, nn.Linear):
        return out.numel() // module.out_features
    if isinstance(module, TRANSPOSED):
        return x.numel() // module.in_channels
    return out.numel() // module.out_channels


def uses(layer: LayerInfo, x: Any, out: Any) -> int:
    """How often one element of the layer's weight is used to make ``out`` from ``x``."""
    if layer.user is layer.module and is_prunable(layer.module) and layer.attribute == "weight":
        return positions(layer.module, x, out)
    tokens = getattr(x, "data", x)  # of a packed sequence
    return tokens.numel() // tokens.shape[-1]


def run(model: nn.Module, example_input: Any) -> Any:
    """The output for an input: a tensor, a tuple of several, or a mapping of named ones."""
    if isinstance(example_input, Mapping):
        return model(**example_input)
    if isinstance(example_input, (tuple, list)):
        return model(*example_input)
    return model(example_input)


def samples_of(model: nn.Module, example_input: Any) -> int:
    """Samples in an input: its second axis in multi-step mode, else its first."""
    many = any(getattr(module, "step_mode", "s") == "m" for module in model.modules())
    first = example_input
    while not isinstance(first, torch.Tensor):
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    return first.shape[1 if many and first.dim() > 1 else 0] if first.dim() else 1


@checked
def layer_positions(model: nn.Module, example_input: Any) -> dict[str, int]:
    """How often a weight of each layer is used in one forward pass of ``example_input``.

    The network runs once from reset, in evaluation mode without gradients, and is left as it was. A
    layer that runs in training alone, such as an auxiliary head, is used 0 times.

    Args:
        model: the network.
        example_input: one batch as the network takes it: a tensor, a tuple of several inputs, or a
            mapping of named ones.

    Returns:
        A number per layer name: the positions at which the layer's weights are used.

    Raises:
        ValueError: a layer runs neither in evaluation nor in training.
    """
    sites = weight_sites(model).items()
    layers = [LayerInfo(n, s.module, 0, True, s.attribute, s.runs) for n, s in sites]
    return uses_of(model, layers, example_input)[0]


def uses_of(
    model: nn.Module, layers: Sequence[LayerInfo], example_input: Any
) -> tuple[dict[str, int], dict[str, list[float]]]:
    """One run: the positions of each layer, and the products of activations by module.

    A layer that is left dense may never run.
    Of products: multiply-accumulates of a dense computation, and of these the additions, since one
    of the two is spikes, and the multiplications; pairs with a 0 are neither.
    """
    found: dict[int, int] = {}
    products: dict[str, list[float]] = {}

    def count(number: int, module: nn.Module, x: Any, out: Any) -> None:
        found[number] = found.get(number, 0) + uses(layers[number], x, out)

    def add(name: str, a: torch.Tensor, b: torch.Tensor) -> None:
        dense, pairs, spikes = operations(a, b)
        sums = products.setdefault(name, [0, 0.0, 0.0])
        sums[0] += dense
        sums[1 if bool(spikes) else 2] += float(pairs)

    weights = [layer.parameter for layer in layers]
    watched = [(number, layer.user) for number, layer in enumerate(layers)]
    with at_rest(model), watching(watched, count), watching_products(model, add, weights):
        run(model, example_input)
    missing = [i for i, layer in enumerate(layers) if i not in found and layer.pruned]
    if missing:
        in_training = _seen_in_training(model, [layers[i] for i in missing], example_input)
        never = [layers[i].name for i in missing if layers[i].name not in in_training]
        if never:
            raise ValueError(
                f"example_input does not reach the layers {never}, neither in evaluation nor in "
                "training: leave them out of layers=, or give an input that reaches them"
            )
    return {layer.name: found.get(i, 0) for i, layer in enumerate(layers)}, products


def _seen_in_training(
    model: nn.Module, layers: Sequence[LayerInfo], example_input: Any
) -> set[str]:
    seen: set[str] = set()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    watched = [(layer.name, layer.user) for layer in layers]
    try:
        with at_rest(model), watching(watched, lambda name, *_: seen.add(name)):
            model.train()
            run(model, example_input)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return seen


class Flops(Linear):
    name = "flops"
    unit = "MAC"
    arguments = ("example_input",)

    def __init__(self, example_input: Any = None):
        if example_input is None:
            raise ValueError("resource 'flops' needs example_input: one batch as the model takes")
        super().__init__()
        self.example_input: Any = example_input
        self.samples = 1
        self.positions: dict[str, int] = {}
        self._products: dict[str, float] = {}

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        super().bind(model, layers)
        if self.example_input is not None:  # not kept alive
            self.positions, products = uses_of(model, layers, self.example_input)
            self._products = {name: float(dense) for name, (dense, *_) in products.items()}
            self.samples = samples_of(model, self.example_input)
            self.example_input = None

    def amount(self) -> float:
        return self.total() / self.samples

    def per_weight(self, layer: LayerInfo) -> float:
        return float(self.positions[layer.name])

    def products(self) -> dict[str, float]:
        return self._products


def flops(example_input: Any) -> Resource:
    """Sum over layers of MACs times kept share, and the MACs of products of activations.

    Products have no weight to cut: they get smaller only as whole channels and heads go.

    Args:
        example_input: one batch as the network takes it.

    Raises:
        ValueError: from the pruner, where ``example_input`` does not reach a layer.
    """
    return Flops(example_input)
