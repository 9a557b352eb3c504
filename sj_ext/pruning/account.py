"""What is kept, and what it costs: the numbers behind every decision of a pruner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .budgets import Target
from .resources import LayerInfo
from .resources.base import Params
from .selection import smallest_count
from .units import Weights

__all__ = ["Account"]


class Account:
    """Counts of cut units, and the resources of the network that is left.

    Args:
        layers: every layer with weights, pruned or left dense.
        units: what is cut in the pruned ones.
        targets: what is counted, and its budgets.
    """

    def __init__(
        self,
        layers: Sequence[LayerInfo],
        units: Weights,
        targets: Sequence[Target],
    ):
        self.layers = list(layers)
        self.pruned = [layer for layer in layers if layer.pruned]
        self.where = [i for i, layer in enumerate(layers) if layer.pruned]
        self.units = units
        self.targets = list(targets)
        self.resources = [target.resource for target in targets]
        self.total = sum(layer.weights for layer in layers)
        #: units that are cut, by pool
        self.cut = [0] * len(units.sizes)

    # ---- what is kept and what it costs -------------------------------------------------------

    def kept(self, cut: Sequence[int] | None = None) -> list[int]:
        """Weights kept in each layer."""
        kept = [layer.weights for layer in self.layers]
        cut = self.cut if cut is None else cut
        for number, price in zip(cut, self.units.prices, strict=True):
            for i, weights in price:
                kept[self.where[i]] -= number * weights
        if any(self.units.columns):
            self._narrow(kept, cut)
        return kept

    def _narrow(self, kept: list[int], cut: Sequence[int]) -> None:
        """Take away what goes of inputs: rows that are left, times columns that are left."""
        number_of = {id(layer.parameter): i for i, layer in enumerate(self.layers)}
        gone = [0] * len(kept)
        for number, columns in zip(cut, self.units.columns, strict=True):
            for weight, entries in columns:
                if id(weight) in number_of:
                    gone[number_of[id(weight)]] += number * entries
        for i, entries in enumerate(gone):
            if entries:
                kept[i] -= kept[i] * entries // self.layers[i].parameter.shape[1]

    @property
    def density(self) -> float:
        """Share of all weights that is kept."""
        return sum(self.kept()) / self.total

    @property
    def shares(self) -> dict[str, float]:
        """Kept share of each pruned layer."""
        kept = self.kept()
        return {self.layers[i].name: kept[i] / self.layers[i].weights for i in self.where}

    def values(self, cut: Sequence[int] | None = None) -> list[float]:
        """Every resource, 1 for the dense network.

        Raises:
            RuntimeError: one is measured while training and no forward was seen yet.
        """
        for res in self.resources:
            if not res.ready:
                raise RuntimeError(
                    f"resource {res.name!r} is measured in training forwards and none was seen: "
                    "run the model in training mode after the pruner is built"
                )
        kept, left = self.kept(cut), self.left(cut)
        return [res(kept, left) for res in self.resources]

    def left(self, cut: Sequence[int] | None = None) -> dict[str, float]:
        """Share of its products of activations that each module has left, where not all."""
        return self.units.left(self.cut if cut is None else cut)

    def met(self, cut: Sequence[int], levels: Sequence[float]) -> bool:
        """Is every resource at its level or below it?"""
        return all(v <= level for v, level in zip(self.values(cut), levels, strict=True))

    @property
    def counts_weights(self) -> bool:
        """The only resource is the number of weights, and each weight is a unit."""
        return (
            len(self.resources) == 1
            and isinstance(self.resources[0], Params)
            and self.units.single_weights
        )

    # ---- how much to cut ----------------------------------------------------------------------

    def smallest_cut(self, pools: Sequence[int], levels: Sequence[float]) -> int:
        """The smallest number of units of ``pools`` to cut, so that the levels are met."""
        if self.counts_weights:
            return self._weights_over(levels[0])
        enough: Callable[[list[int]], bool] = lambda counts: self.met(counts, levels)  # noqa: E731
        return smallest_count(self.units.magnitudes(pools), enough)[0]

    def _weights_over(self, level: float) -> int:
        need = self.total - int(level * self.total)
        while need > 0 and (self.total - need + 1) / self.total <= level:
            need -= 1
        while (self.total - need) / self.total > level:
            need += 1
        return need

    def uniform(self, base: Sequence[float], levels: Sequence[float]) -> list[int]:
        """Cut the same further share of what is left of every pool, until the levels are met.

        The numbers are whole, and no pool could be cut by one less.
        """

        def at(share: float) -> list[int]:
            most = self.units.most
            return [min(m, math.ceil(b + share * (m - b))) for b, m in zip(base, most, strict=True)]

        return self.first_met(at, levels)

    def first_met(self, at: Callable[[float], list[int]], levels: Sequence[float]) -> list[int]:
        """``at`` the smallest share in [0, 1] at which the levels are met, without a unit too many.

        Args:
            at: counts, which rise with the share; at 1 they meet the levels.
            levels: one per resource.
        """
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.met(at(middle), levels) else (middle, high)
        return self.trim(at(high), levels)

    def trim(self, cut: Sequence[int], levels: Sequence[float]) -> list[int]:
        """Give back single units, pool by pool, while the levels stay met."""
        cut, gave = list(cut), True
        while gave:
            gave = False
            for i in range(len(cut)):
                if cut[i] > 0:
                    cut[i] -= 1
                    if self.met(cut, levels):
                        gave = True
                    else:
                        cut[i] += 1
        return cut

    # ---- what is possible ---------------------------------------------------------------------

    def floor(self) -> list[float]:
        """Every resource with all cut that may be."""
        return self.values(self.units.most)

    def require_possible(self) -> None:
        """Raise where a budget is below what has to stay.

        Raises:
            ValueError: with the figures of each layer.
        """
        for target, floor in zip(self.targets, self.floor(), strict=True):
            target.measure()
            if floor > target.share:
                raise ValueError(self._impossible(target, floor))

    def _impossible(self, target: Target, floor: float) -> str:
        res, dense = target.resource, [layer for layer in self.layers if not layer.pruned]
        names = ", ".join(layer.name for layer in dense) or "none"
        share = "" if target.amount is None else f" ({target.share:.6g} of the dense network)"
        stays = "" if self.units.single_weights else " together with one channel per layer"
        total = res.total()
        costs = [f"{layer.name} {res.cost(layer, 1.0) / total:.4g}" for layer in dense]
        left = self.left(self.units.most)
        costs += [
            f"products in {name or 'the network'} {cost * left.get(name, 1.0) / total:.4g}"
            for name, cost in res.products().items()
        ]
        products = " and products of activations" if res.products() else ""
        first = self.layers[0]
        reason = (
            f"; {first.name!r} is the first layer, which stays dense unless first=True or it is "
            "named in layers="
            if not first.pruned
            else ""
        )
        return (
            f"budget {target.given}{share} of resource {res.name!r} cannot be met: the layers that "
            f"are left dense ({names}){products} cost {floor:.6g} of the dense network{stays}"
            + (f" (one by one: {', '.join(costs)})" if costs else "")
            + f"; raise the budget or prune more layers{reason}"
        )
