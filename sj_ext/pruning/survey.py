"""The weights of a network: one entry per tensor, however many layers share it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .layers import weight_layers
from .masks import parameter_of
from .resources import LayerInfo

__all__ = ["survey"]


def survey(
    model: nn.Module, chosen: Mapping[str, nn.Module]
) -> tuple[list[LayerInfo], list[tuple[nn.Module, LayerInfo]]]:
    """Every layer that has weights of its own, in the model's order.

    Args:
        model: where to look.
        chosen: the layers to prune, by name.

    Returns:
        What a resource may know of each layer, and the layers that share a pruned weight, each with
        its owner.
    """
    infos: list[LayerInfo] = []
    shared: list[tuple[nn.Module, LayerInfo]] = []
    owners: dict[int, LayerInfo] = {}
    wanted = {id(parameter_of(module)) for module in chosen.values()}
    for name, module in weight_layers(model).items():
        weight = parameter_of(module)
        if id(weight) in owners:
            if id(weight) in wanted:
                shared.append((module, owners[id(weight)]))
            continue
        owners[id(weight)] = LayerInfo(name, module, weight.numel(), id(weight) in wanted)
        infos.append(owners[id(weight)])
    return infos, shared
