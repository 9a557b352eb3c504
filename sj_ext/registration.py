"""Putting the package's names into SpikingJelly's own namespaces, and taking them out again."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NamedTuple

from . import ann2snn, functional, host, layer, memory, model, neuron, pruning, search, surrogate

__all__ = ["Registration", "register", "registered", "unregister"]

HOST_ROOT = "spikingjelly.activation_based"

#: names by the host's namespace that they go to
NAMES: dict[ModuleType, tuple[ModuleType, tuple[str, ...]]] = {
    host.neuron: (
        neuron,
        (
            "IMPIFNode",
            "IMPLIFNode",
            "IMPParametricLIFNode",
            "MultiLevelFiringNode",
            "TurnOffNode",
            "TurnOnNode",
        ),
    ),
    host.surrogate: (surrogate, ("ClosedRect", "DSpike", "Rect")),
    host.functional: (
        functional,
        ("lts_cross_entropy", "sdt_cross_entropy", "tet_cross_entropy", "tet_s_cross_entropy"),
    ),
    host.ann2snn: (
        ann2snn,
        (
            "ComposedRecipe",
            "ConversionIFNode",
            "QuantizedClip",
            "convert",
            "evaluate",
            "refine",
            "replace_activations",
            "report",
        ),
    ),
    host.layer: (
        layer,
        ("SCS", "SDSA1", "SDSA3", "SSA", "ConvStem", "ScaledWSConv2d", "TemporalReversible"),
    ),
}

#: sub-modules by the host's package that they go to
SUBMODULES: dict[ModuleType, dict[str, ModuleType]] = {
    host.ann2snn: {
        "activation": ann2snn.activation,
        "calibrate": ann2snn.calibrate,
        "presets": ann2snn.presets,
        "threshold": ann2snn.threshold,
    },
    host.model: {"transformer": model.transformer, "trevsnn": model.trevsnn},
    sys.modules[HOST_ROOT]: {"memory": memory, "pruning": pruning, "search": search},
}


class Registration(NamedTuple):
    """Where a name stands and whose object it is."""

    name: str
    #: the namespace, for example ``spikingjelly.activation_based.neuron``
    place: str
    #: ``'sj_ext'``, or ``'spikingjelly'`` where the host had the name already and keeps it
    owner: str


_registered: dict[tuple[str, str], tuple[Registration, object]] = {}


def register() -> list[Registration]:
    """Put every public name into SpikingJelly's namespaces; importing ``sj_ext`` does it.

    A name that the host has already is left alone: the host's object stays. Calling this again
    changes nothing.

    Returns:
        What :func:`registered` returns.
    """
    for place, (source, names) in NAMES.items():
        for name in names:
            _put(place, name, getattr(source, name))
    for place, modules in SUBMODULES.items():
        for name, module in modules.items():
            if _put(place, name, module) == "sj_ext":
                # "import spikingjelly.activation_based.pruning" looks here
                sys.modules.setdefault(f"{place.__name__}.{name}", module)
    return registered()


def registered() -> list[Registration]:
    """Every name that is registered now, its namespace, and whose object it is there."""
    return [entry for entry, _ in _registered.values()]


def unregister() -> None:
    """Take the package's names out of SpikingJelly again; the host's own names stay.

    A name whose object somebody replaced since is theirs, and stays too.
    """
    for entry, value in _registered.values():
        if entry.owner != "sj_ext":
            continue
        place = sys.modules[entry.place]
        if getattr(place, entry.name, None) is value:
            delattr(place, entry.name)
        full_name = f"{entry.place}.{entry.name}"
        if sys.modules.get(full_name) is value:
            del sys.modules[full_name]
    _registered.clear()


def _put(place: ModuleType, name: str, value: object) -> str:
    key = (place.__name__, name)
    if key in _registered:
        return _registered[key][0].owner
    owner = "sj_ext" if getattr(place, name, None) is None else "spikingjelly"
    if owner == "sj_ext":
        setattr(place, name, value)
    _registered[key] = (Registration(name, place.__name__, owner), value)
    return owner
