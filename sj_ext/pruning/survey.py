"""The weights of a network: one entry per tensor, however many layers share it."""

from __future__ import annotations

from collections.abc import Mapping

from .layers import Site
from .resources import LayerInfo

__all__ = ["survey"]


def survey(
    chosen: Mapping[str, Site], known: Mapping[str, Site]
) -> tuple[list[LayerInfo], list[tuple[Site, LayerInfo]]]:
    """Every weight of its own, in the model's order.

    Args:
        chosen: the weights to prune, by name.
        known: all that count.

    Returns:
        What a resource may know of each, and the places that share a pruned weight, each with its
        owner.
    """
    infos: list[LayerInfo] = []
    shared: list[tuple[Site, LayerInfo]] = []
    owners: dict[int, LayerInfo] = {}
    wanted = {id(getattr(site.module, site.attribute)) for site in chosen.values()}
    for name, site in known.items():
        weight = getattr(site.module, site.attribute)
        if id(weight) in owners:
            if id(weight) in wanted:
                shared.append((site, owners[id(weight)]))
            continue
        pruned = id(weight) in wanted
        info = LayerInfo(name, site.module, weight.numel(), pruned, site.attribute, site.runs)
        owners[id(weight)] = info
        infos.append(info)
    return infos, shared
