"""What is cut: single weights; whole channels are in :mod:`sj_ext.pruning.channels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .masks import own_mask
from .resources import LayerInfo
from .selection import (
    Cut,
    cut_mask_one_,
    flat,
    scale_between_,
    zero_below_,
)

__all__ = ["Weights"]


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

    @property
    def learned(self) -> bool:
        """It is known what belongs to a unit."""
        return True

    def learn(self, graph: Any) -> None:
        """Take what a trace has found."""

    def parameters(self) -> list[tuple[nn.Module, str]]:
        """Every parameter in which zeros are held: its module, and its name there."""
        return [(layer.module, layer.attribute) for layer in self.layers]

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
