"""What every resource is: a cost that adds up over layers; and the simplest, weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...arguments import checked

__all__ = ["LayerInfo", "Linear", "Params", "Resource", "params"]


@dataclass
class LayerInfo:
    """What a resource may know about a layer.

    Attributes:
        name: the layer's name in the model.
        module: the layer.
        weights: number of weights, dense.
        pruned: False where the layer is left dense.
        attribute: name of the weight's parameter in ``module``.
        runs: the module whose forward uses the weight, where that is not ``module``: an attention
            uses its output layer without calling it.
    """

    name: str
    module: nn.Module
    weights: int
    pruned: bool = True
    attribute: str = "weight"
    runs: nn.Module | None = None

    @property
    def user(self) -> nn.Module:
        """The module whose forward uses the weight."""
        return self.runs or self.module

    @property
    def reads_input(self) -> bool:
        """The weight multiplies what its module is given, not what is made inside of it."""
        hidden = "weight_hh" in self.attribute or (
            "weight_ih_l" in self.attribute and not self.attribute.startswith("weight_ih_l0")
        )
        return self.user is self.module and not hidden

    @property
    def parameter(self) -> torch.Tensor:
        """The weight itself."""
        return getattr(self.module, self.attribute)


@checked
class Resource:
    """A cost that adds up over layers.

    Args:
        name: how the resource is called in reports.
        cost: ``cost(layer: LayerInfo, share: float) -> float``, never falling as the kept share
            grows; None where a subclass overrides :meth:`cost`.

    Raises:
        NotImplementedError: :meth:`cost` is called and is defined in neither way.
    """

    name = "resource"
    #: keywords of the pruner that the constructor takes where the resource is given by its name
    arguments: tuple[str, ...] = ()
    #: of absolute budgets; empty where they are plain numbers
    unit = ""
    #: measurements are averaged over the ranks of a process group
    across_ranks = True

    def __init__(
        self, name: str | None = None, cost: Callable[[LayerInfo, float], float] | None = None
    ):
        self.name = name or type(self).name
        self._cost = cost
        self.layers: list[LayerInfo] = []
        #: share of the products of activations that was left while they were last measured
        self.left: Mapping[str, float] = {}

    # ---- to override --------------------------------------------------------------------------

    def cost(self, layer: LayerInfo, share: float) -> float:
        """What ``layer`` costs with ``share`` of its weights kept; units are the resource's own."""
        if self._cost is None:
            raise NotImplementedError(f"{type(self).__name__} must define cost(layer, share)")
        return self._cost(layer, share)

    def products(self) -> dict[str, float]:
        """What products of activations cost, such as an attention's, dense, by module."""
        return {}

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        """Called once by the pruner: look at the model, measure, or raise."""
        self.layers = list(layers)

    @property
    def ready(self) -> bool:
        """False until what has to be measured while training has been measured."""
        return True

    def freeze(self, frozen: bool) -> None:
        """Measurements stop while masks are fixed, so that a met budget stays met."""

    def update(self) -> None:
        """Called before each step of compression: take over what was measured since the last."""

    def close(self) -> None:
        """Called when the pruner has finished: take hooks off."""

    def state_dict(self) -> dict[str, Any]:
        """What has been measured."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""

    # ---- what the pruner asks -----------------------------------------------------------------

    def total(self) -> float:
        """The dense network's cost."""
        layers = sum(map(self.cost, self.layers, itertools.repeat(1.0)))
        return layers + sum(self.products().values())

    def amount(self) -> float:
        """The dense network's cost in absolute terms: per sample, in :attr:`unit`."""
        return self.total()

    def __call__(self, kept: Sequence[int], left: Mapping[str, float] | None = None) -> float:
        """R of a network with ``kept`` weights in each layer.

        Args:
            kept: of each layer.
            left: share of a module's products that is left, where it is not all.
        """
        total, left = self.total(), left or {}
        if total <= 0:
            raise ValueError(
                f"resource {self.name!r} of the dense network must be above 0, got {total}"
            )
        return (
            sum(
                self.cost(layer, n / layer.weights)
                for layer, n in zip(self.layers, kept, strict=True)
            )
            + sum(cost * left.get(name, 1.0) for name, cost in self.products().items())
        ) / total

    def slope(self, index: int, kept: int) -> float:
        """dR/d(kept share of layer ``index``), by a central difference of a hundredth."""
        layer = self.layers[index]
        share = kept / layer.weights
        low, high = max(0.0, share - 0.005), min(1.0, share + 0.005)
        return (self.cost(layer, high) - self.cost(layer, low)) / (high - low) / self.total()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Linear(Resource):
    """Each weight of a layer costs the same."""

    def per_weight(self, layer: LayerInfo) -> float:
        raise NotImplementedError

    def cost(self, layer: LayerInfo, share: float) -> float:
        return self.per_weight(layer) * layer.weights * share

    def slope(self, index: int, kept: int) -> float:
        return self.cost(self.layers[index], 1.0) / self.total()


class Params(Linear):
    name = "params"

    def per_weight(self, layer: LayerInfo) -> float:
        return 1.0

    def __call__(self, kept: Sequence[int], left: Mapping[str, float] | None = None) -> float:
        return sum(kept) / sum(layer.weights for layer in self.layers)


def params() -> Resource:
    """Share of weights kept."""
    return Params()
