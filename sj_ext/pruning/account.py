"""What is kept, and what it costs: the numbers behind every decision of a pruner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .resources import LayerInfo, Resource
from .resources.base import Params
from .selection import smallest_count
from .units import Weights

__all__ = ["Account"]


class Account:
    """Counts of cut units, and the resources of the network that is left.

    Args:
        layers: every layer with weights, pruned or left dense.
        units: what is cut in the pruned ones.
        resources: what is counted.
        budgets: one share per resource.
    """

    def __init__(
        self,
        layers: Sequence[LayerInfo],
        units: Weights,
        resources: Sequence[Resource],
        budgets: Sequence[float],
    ):
        self.layers = list(layers)
        self.pruned = [layer for layer in layers if layer.pruned]
        self.where = [i for i, layer in enumerate(layers) if layer.pruned]
        self.units = units
        self.resources = list(resources)
        self.budgets = list(budgets)
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
        return kept

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
        kept = self.kept(cut)
        return [res(kept) for res in self.resources]

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

    def require_possible(self, res: Resource) -> None:
        """Raise where the budget of ``res`` is below what has to stay.

        Raises:
            ValueError: with the figures.
        """
        budget = self.budgets[self.resources.index(res)]
        floor = res(self.kept(self.units.most))
        if floor > budget:
            dense = [layer.name for layer in self.layers if not layer.pruned]
            stays = "" if self.units.single_weights else " together with one channel per layer"
            raise ValueError(
                f"budget {budget} of resource {res.name!r} cannot be met: the layers that are left "
                f"dense ({', '.join(dense) or 'none'}) cost {floor:.6g} of the dense network"
                f"{stays}; raise the budget or prune more layers (first=True prunes the first)"
            )
