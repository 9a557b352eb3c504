"""What is cut: single weights, or whole output channels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import TRANSPOSED
from .masks import own_mask, parameter_of
from .selection import (
    Cut,
    NotFinite,
    cut_mask_one_,
    flat,
    hold_,
    scale_between_,
    zero_below_,
)

__all__ = ["Channels", "Weights", "channels_first"]


class Weights:
    """Every weight is a unit; its magnitude is its absolute value.

    Args:
        modules: layers with masks, one per weight tensor.
    """

    #: each unit is one weight
    single_weights = True

    def __init__(self, modules: Sequence[nn.Module]):
        self.modules = list(modules)
        #: units that may be cut, by pool; here a pool is a layer
        self.sizes = [parameter_of(module).numel() for module in self.modules]
        #: what a unit takes from which layers, by pool: pairs of a layer's number and weights
        self.prices = [[(i, 1)] for i in range(len(self.modules))]

    def magnitudes(self, layers: Sequence[int]) -> list[torch.Tensor]:
        """One-dimensional tensors, in the order of ties; here views of the weights."""
        return [flat(parameter_of(self.modules[i])) for i in layers]

    def zero(self, layers: Sequence[int], cut: Cut) -> None:
        """Set the units below the cut to zero."""
        zero_below_(self.magnitudes(layers), cut)

    @property
    def most(self) -> list[int]:
        """Units that may be cut, by pool."""
        return list(self.sizes)

    def scale(self, layers: Sequence[int], low: Cut, high: Cut, factors: Sequence[float]) -> None:
        """Multiply the units from ``low`` to below ``high`` by their layer's factor."""
        scale_between_(self.magnitudes(layers), low, high, factors)

    def write_masks(self, layers: Sequence[int], cut: Cut) -> None:
        """Masks that are False below the cut."""
        tensors = self.magnitudes(layers)
        for number, i in enumerate(layers):
            # in the weight's own memory layout, which a loaded or moved mask need not have
            mask = torch.empty_like(parameter_of(self.modules[i]), dtype=torch.bool)
            cut_mask_one_(flat(mask), tensors, number, cut)
            own_mask(self.modules[i]).mask.copy_(mask)

    def hold(self) -> None:
        """Put the zeros of closed masks back, for example after a step with momentum."""
        for module in self.modules:
            hold_(parameter_of(module).detach(), own_mask(module).mask)


def channels_first(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A view ``[out_channels, ...]`` of the weight; needs one group where it is transposed."""
    return weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight


class Channels(Weights):
    """Every output channel is a unit; its magnitude is the root mean square of its weights.

    A cut channel is silent: its bias is zero too, and so are scale and shift of the batch
    normalisation that the same parent module holds right after the layer. Each layer keeps its
    strongest channel.

    Args:
        modules: layers with masks.
        norms: per layer the normalisation that follows it, or None.
    """

    single_weights = False

    def __init__(self, modules: Sequence[nn.Module], norms: Sequence[_BatchNorm | None]):
        super().__init__(modules)
        self.norms = list(norms)
        for module in self.modules:
            if isinstance(module, TRANSPOSED) and module.groups > 1:
                raise ValueError(
                    f"granularity 'channel' needs groups=1 in transposed convolutions, got {module}"
                )
        # the strongest channel of a layer is no candidate
        self.sizes = [len(self._rows(i)) - 1 for i in range(len(self.modules))]
        self.prices = [[(i, self._rows(i)[0].numel())] for i in range(len(self.modules))]

    def _rows(self, i: int) -> torch.Tensor:
        return channels_first(self.modules[i], parameter_of(self.modules[i]).detach())

    def _scores(self, i: int) -> tuple[torch.Tensor, int]:
        """The score of each channel, and which is the strongest."""
        score = self._rows(i).flatten(1).double().square().mean(1).sqrt()
        if not score.isfinite().all():
            raise NotFinite([i])
        return score, int(score.argmax())

    def magnitudes(self, layers: Sequence[int]) -> list[torch.Tensor]:
        found = []
        for i in layers:
            score, strongest = self._scores(i)
            found.append(torch.cat((score[:strongest], score[strongest + 1 :])))
        return found

    def _cuts(self, layers: Sequence[int], cut: Cut) -> list[torch.Tensor]:
        kept = []
        magnitudes = self.magnitudes(layers)
        for number, i in enumerate(layers):
            others = torch.empty_like(magnitudes[number], dtype=torch.bool)
            cut_mask_one_(others, magnitudes, number, cut)
            strongest = self._scores(i)[1]
            kept.append(torch.cat((others[:strongest], others.new_ones(1), others[strongest:])))
        return kept

    def _silence(self, i: int, kept: torch.Tensor) -> None:
        rows = self._rows(i)
        rows.mul_(kept.view(-1, *[1] * (rows.dim() - 1)))
        norm = self.norms[i]
        for vector in (self.modules[i].bias, *((norm.weight, norm.bias) if norm else ())):
            if vector is not None:
                vector.detach().mul_(kept)

    def zero(self, layers: Sequence[int], cut: Cut) -> None:
        for i, kept in zip(layers, self._cuts(layers, cut), strict=True):
            self._silence(i, kept)

    def scale(self, layers: Sequence[int], low: Cut, high: Cut, factors: Sequence[float]) -> None:
        below, upto = self._cuts(layers, low), self._cuts(layers, high)
        for i, inner, outer, factor in zip(layers, below, upto, factors, strict=True):
            rows, between = self._rows(i), inner & ~outer
            rows[between] *= factor

    def write_masks(self, layers: Sequence[int], cut: Cut) -> None:
        for i, kept in zip(layers, self._cuts(layers, cut), strict=True):
            mask = channels_first(self.modules[i], own_mask(self.modules[i]).mask)
            mask.copy_(kept.view(-1, *[1] * (mask.dim() - 1)).expand_as(mask))

    def hold(self) -> None:
        for i, module in enumerate(self.modules):
            mask = channels_first(module, own_mask(module).mask)
            self._silence(i, mask.flatten(1).any(1))


def following_norms(model: nn.Module, modules: Sequence[nn.Module]) -> list[_BatchNorm | None]:
    """Per layer the batch normalisation right after it in the same parent, where sizes agree."""
    after = {}
    for parent in model.modules():
        children = list(parent.children())
        for module, nxt in itertools.pairwise(children):
            if isinstance(nxt, _BatchNorm):
                after[module] = nxt
    norms = []
    for module in modules:
        norm = after.get(module)
        size = getattr(module, "out_channels", getattr(module, "out_features", None))
        norms.append(norm if norm is not None and norm.num_features == size else None)
    return norms
