"""What is cut: single weights, or whole output channels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import TRANSPOSED
from .masks import own_mask
from .resources import LayerInfo
from .selection import (
    Cut,
    NotFinite,
    cut_mask_one_,
    flat,
    scale_between_,
    zero_below_,
)

__all__ = ["Channels", "Weights", "channels_first"]


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


def channels_first(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A view ``[out_channels, ...]`` of the weight; needs one group where it is transposed."""
    return weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight


class Channels(Weights):
    """Every output channel is a unit; its magnitude is the root mean square of its weights.

    A cut channel is silent: its bias is zero too, and so are scale and shift of the batch
    normalisation that the same parent module holds right after the layer. Each layer keeps its
    strongest channel.

    Args:
        layers: the pruned layers.
        norms: per layer the normalisation that follows it, or None.
    """

    single_weights = False

    def __init__(self, layers: Sequence[LayerInfo], norms: Sequence[_BatchNorm | None]):
        super().__init__(layers)
        self.norms = list(norms)
        for layer in self.layers:
            if isinstance(layer.module, TRANSPOSED) and layer.module.groups > 1:
                raise ValueError(
                    f"granularity 'channel' needs groups=1 in transposed convolutions, got layer "
                    f"{layer.name!r}, {layer.module}: leave it out"
                )
        # the strongest channel of a layer is no candidate
        self.sizes = [len(self._rows(i)) - 1 for i in range(len(self.layers))]
        self.prices = [[(i, self._rows(i)[0].numel())] for i in range(len(self.layers))]

    def parameters(self) -> list[tuple[nn.Module, str]]:
        vectors = [pair for i in range(len(self.layers)) for pair in self._vectors(i)]
        return [*super().parameters(), *vectors]

    def _rows(self, i: int) -> torch.Tensor:
        layer = self.layers[i]
        return channels_first(layer.module, layer.parameter.detach())

    def _vectors(self, i: int) -> list[tuple[nn.Module, str]]:
        """What else must be zero for a channel of the layer to be silent."""
        norm = self.norms[i]
        places: list[tuple[nn.Module, str]] = [(self.layers[i].module, "bias")]
        places += [(norm, "weight"), (norm, "bias")] if norm is not None else []
        return [(module, name) for module, name in places if getattr(module, name) is not None]

    def _scores(self, i: int) -> tuple[torch.Tensor, int]:
        """The score of each channel, and which is the strongest."""
        score = self._rows(i).flatten(1).double().square().mean(1).sqrt()
        if not score.isfinite().all():
            raise NotFinite([i])
        return score, int(score.argmax())

    def magnitudes(self, pools: Sequence[int]) -> list[torch.Tensor]:
        found = []
        for i in pools:
            score, strongest = self._scores(i)
            found.append(torch.cat((score[:strongest], score[strongest + 1 :])))
        return found

    def _kept(self, pools: Sequence[int], cut: Cut) -> list[torch.Tensor]:
        """Which channels are at the cut or above it."""
        kept = []
        magnitudes = self.magnitudes(pools)
        for number, i in enumerate(pools):
            others = torch.empty_like(magnitudes[number], dtype=torch.bool)
            cut_mask_one_(others, magnitudes, number, cut)
            strongest = self._scores(i)[1]
            kept.append(torch.cat((others[:strongest], others.new_ones(1), others[strongest:])))
        return kept

    def zero(self, pools: Sequence[int], cut: Cut) -> None:
        for i, kept in zip(pools, self._kept(pools, cut), strict=True):
            rows = self._rows(i)
            rows.mul_(kept.view(-1, *[1] * (rows.dim() - 1)))
            for module, name in self._vectors(i):
                getattr(module, name).detach().mul_(kept)

    def scale(self, pools: Sequence[int], low: Cut, high: Cut, factors: Sequence[float]) -> None:
        below, upto = self._kept(pools, low), self._kept(pools, high)
        for i, inner, outer, factor in zip(pools, below, upto, factors, strict=True):
            rows, between = self._rows(i), inner & ~outer
            rows[between] *= factor

    def write_masks(self, pools: Sequence[int], cut: Cut) -> None:
        for i, kept in zip(pools, self._kept(pools, cut), strict=True):
            layer = self.layers[i]
            mask = torch.empty_like(layer.parameter, dtype=torch.bool, requires_grad=False)
            rows = channels_first(layer.module, mask)
            rows.copy_(kept.view(-1, *[1] * (rows.dim() - 1)).expand_as(rows))
            own_mask(layer.module, layer.attribute).set(mask)
            for module, name in self._vectors(i):
                own_mask(module, name).set(kept.clone())


def following_norms(model: nn.Module, layers: Sequence[LayerInfo]) -> list[_BatchNorm | None]:
    """Per layer the batch normalisation right after it in the same parent, where sizes agree."""
    after = {}
    for parent in model.modules():
        children = list(parent.children())
        for module, nxt in itertools.pairwise(children):
            if isinstance(nxt, _BatchNorm):
                after[module] = nxt
    norms = []
    for module in (layer.module for layer in layers):
        norm = after.get(module)
        size = getattr(module, "out_channels", getattr(module, "out_features", None))
        norms.append(norm if norm is not None and norm.num_features == size else None)
    return norms
