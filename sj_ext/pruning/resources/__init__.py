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

from .base import LayerInfo, Resource, params
from .latency import LatencyTable, device_name, latency, measure_latency
from .measured import energy, synops
from .operations import flops, layer_positions

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


def resource(
    which: str | Resource,
    *,
    example_input: Any = None,
    latency_table: LatencyTable | None = None,
) -> Resource:
    """A resource by name: ``'params'``, ``'flops'``, ``'synops'``, ``'latency'``, ``'energy'``.

    Args:
        which: the name, or a :class:`Resource`, which comes back as it is.
        example_input: one batch as the network takes it: needed by ``'flops'``, and by absolute
            budgets of ``'synops'`` and ``'energy'``.
        latency_table: for ``'latency'``, from :func:`measure_latency`.

    Raises:
        TypeError: neither a name nor a :class:`Resource`.
        ValueError: an unknown name, or what the resource needs is not given.
    """
    if isinstance(which, Resource):
        return which
    if not isinstance(which, str):
        raise TypeError(f"which resource must be a name or a Resource, got {which!r}")
    if latency_table is not None and not isinstance(latency_table, LatencyTable):
        raise TypeError(f"latency_table must be a LatencyTable or None, got {latency_table!r}")
    if which == "flops":
        if example_input is None:
            raise ValueError("resource 'flops' needs example_input: one batch as the model takes")
        return flops(example_input)
    if which == "latency":
        if latency_table is None:
            raise ValueError(
                "resource 'latency' needs latency_table, as measure_latency(model, example_input) "
                "returns it"
            )
        return latency(latency_table)
    known = {
        "params": params,
        "synops": lambda: synops(example_input=example_input),
        "energy": lambda: energy(example_input=example_input),
    }
    if which not in known:
        raise ValueError(
            f"which resource must be one of {sorted([*known, 'flops', 'latency'])} or a Resource, "
            f"got {which!r}"
        )
    return known[which]()
