r"""What a network costs, as a share of what the dense network costs.

A resource adds up over layers. With the kept share :math:`d_l` of layer :math:`l`,

.. math::
    R = \frac{\sum_l c_l(d_l)}{\sum_l c_l(1)}

so that the dense network is 1. Layers that are left dense count with :math:`d_l = 1`.

A new resource is a subclass of :class:`Resource` that defines :meth:`Resource.cost`, or a function
``cost(layer, share)`` given to :class:`Resource`.
"""

from __future__ import annotations

from typing import Any

from .base import LayerInfo, Params, Resource, params
from .latency import Latency, LatencyTable, device_name, latency, measure_latency
from .measured import Energy, Synops, energy, synops
from .operations import Flops, flops, layer_positions

__all__ = [
    "LatencyTable",
    "LayerInfo",
    "Resource",
    "device_name",
    "energy",
    "flops",
    "latency",
    "layer_positions",
    "measure_latency",
    "params",
    "resource",
    "synops",
]


#: the resources that are known by name
BUILT_IN: dict[str, type[Resource]] = {
    kind.name: kind for kind in (Params, Flops, Synops, Latency, Energy)
}


def resource(which: str | Resource, **arguments: Any) -> Resource:
    """A resource by name: ``'params'``, ``'flops'``, ``'synops'``, ``'latency'``, ``'energy'``.

    Args:
        which: the name, or a :class:`Resource`, which comes back as it is.
        **arguments: what any of them takes; each is given its own. ``example_input``, one batch as
            the network takes it, is needed by ``'flops'``, and by absolute budgets of ``'synops'``
            and ``'energy'``; ``latency_table``, from :func:`measure_latency`, by ``'latency'``.

    Raises:
        TypeError: neither a name nor a :class:`Resource`, or an argument that no resource takes.
        ValueError: an unknown name, or what the resource needs is not given.
    """
    known = {name for kind in BUILT_IN.values() for name in kind.arguments}
    for name in arguments.keys() - known:
        raise TypeError(f"unexpected keyword argument {name!r}; resources take {sorted(known)}")
    if isinstance(which, Resource):
        return which
    if not isinstance(which, str):
        raise TypeError(f"which resource must be a name or a Resource, got {which!r}")
    if which not in BUILT_IN:
        raise ValueError(
            f"which resource must be one of {sorted(BUILT_IN)} or a Resource, got {which!r}"
        )
    kind = BUILT_IN[which]
    return kind(**{name: arguments[name] for name in kind.arguments if name in arguments})
