"""What is cut: single weights; whole channels are in :mod:`sj_ext.pruning.channels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import checks
from .importance import Importance
from .masks import own_mask
from .resources import LayerInfo
from .selection import (
    Cut,
    cut_mask_one_,
    flat,
    scale_between_,
    zero_below_,
)

__all__ = ["Scored", "Weights", "checked_scores"]


class Weights:
    """Every weight is a unit; its magnitude is its absolute value.

    Args:
        layers: the pruned layers, one per weight tensor.
    """

    #: each unit is one weight
    single_weights = True

    def __init__(self, layers: Sequence[LayerInfo]):
        self.layers = list(layers)
        #: units that may be cut, by pool; here a pool is a layer
        self.sizes = [layer.weights for layer in self.layers]
        #: what a unit takes from which layers, by pool: pairs of a layer's number and weights
        self.prices = [[(i, 1)] for i in range(len(self.layers))]
        #: entries of inputs that go with a unit, by pool: the weight they are read by, and number
        self.columns: list[list[tuple[torch.Tensor, int]]] = [[] for _ in self.layers]

    @property
    def learned(self) -> bool:
        """It is known what belongs to a unit."""
        return True

    def learn(self, graph: Any) -> None:
        """Take what a trace has found."""

    def left(self, cut: Sequence[int]) -> dict[str, float]:
        """Share of its products of activations that each module has left; single weights: all."""
        return {}

    def magnitudes(self, pools: Sequence[int]) -> list[torch.Tensor]:
        """One-dimensional tensors, in the order of ties; here views of the weights."""
        return [flat(self.layers[i].parameter) for i in pools]

    def zero(self, pools: Sequence[int], cut: Cut) -> None:
        """Set the units below the cut to zero."""
        zero_below_(self.magnitudes(pools), cut)

    @property
    def most(self) -> list[int]:
        """Units that may be cut, by pool."""
        return list(self.sizes)

    def scale(self, pools: Sequence[int], low: Cut, high: Cut, factors: Sequence[float]) -> None:
        """Multiply the units from ``low`` to below ``high`` by their pool's factor."""
        scale_between_(self.magnitudes(pools), low, high, factors)

    def write_masks(self, pools: Sequence[int], cut: Cut) -> None:
        """Masks that are False below the cut."""
        tensors = self.magnitudes(pools)
        for number, i in enumerate(pools):
            layer = self.layers[i]
            # in the weight's own memory layout, which a loaded or moved mask need not have
            mask = torch.empty_like(layer.parameter, dtype=torch.bool, requires_grad=False)
            cut_mask_one_(flat(mask), tensors, number, cut)
            own_mask(layer.module, layer.attribute).set(mask)


class Scored(Weights):
    """Every weight is a unit; its magnitude is what a criterion says.

    Args:
        layers: the pruned layers, one per weight tensor.
        importance: the criterion.
    """

    def __init__(self, layers: Sequence[LayerInfo], importance: Importance):
        super().__init__(layers)
        self.importance = importance

    def magnitudes(self, pools: Sequence[int]) -> list[torch.Tensor]:
        found = []
        for i in pools:
            score = checked_scores(self.importance, self.layers[i])
            # in the weight's own memory layout
            found.append(flat(torch.empty_like(self.layers[i].parameter).copy_(score)))
        return found

    def _kept(self, pools: Sequence[int], cut: Cut) -> list[torch.Tensor]:
        magnitudes = self.magnitudes(pools)
        kept = [torch.empty_like(each, dtype=torch.bool) for each in magnitudes]
        for number, mask in enumerate(kept):
            cut_mask_one_(mask, magnitudes, number, cut)
        return kept

    def zero(self, pools: Sequence[int], cut: Cut) -> None:
        for i, kept in zip(pools, self._kept(pools, cut), strict=True):
            flat(self.layers[i].parameter).mul_(kept)

    def scale(self, pools: Sequence[int], low: Cut, high: Cut, factors: Sequence[float]) -> None:
        below, upto = self._kept(pools, low), self._kept(pools, high)
        for i, inner, outer, factor in zip(pools, below, upto, factors, strict=True):
            flat(self.layers[i].parameter)[inner & ~outer] *= factor


def checked_scores(importance: Importance, layer: LayerInfo) -> torch.Tensor:
    """The scores of a layer, if they are scores.

    Raises:
        TypeError: they are no tensor.
        ValueError: they have another shape than the weight, or one is negative or NaN.
    """
    scores = checks.tensor(f"scores of {type(importance).__name__}", importance.scores(layer))
    if scores.shape != layer.parameter.shape or not bool((scores >= 0).all()):
        raise ValueError(
            f"scores of {type(importance).__name__} for layer {layer.name!r} must be at least 0, "
            f"in shape {list(layer.parameter.shape)}, got shape {list(scores.shape)}"
            f" and a minimum of {scores.min().item():.4g}"
        )
    return scores.detach()
