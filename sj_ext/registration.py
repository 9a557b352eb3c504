"""Putting the package's names into SpikingJelly's own namespaces, and taking them out again."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import partial
from types import ModuleType
from typing import NamedTuple

from . import host
from .when_imported import WhenImported

__all__ = ["Registration", "register", "registered", "unregister"]

HOST_ROOT = "spikingjelly.activation_based"

#: our modules whose public names go into the host's module of the same name
INTO = ("functional", "layer", "neuron", "surrogate")

#: the same for modules that the host loads only when they are asked for: so are ours
INTO_WHEN_IMPORTED = ("ann2snn", "model")

#: our modules that go to the host as they are: it has none of that name
WHOLE = ("analysis", "loss", "memory", "pruning", "search")

#: functions on whole networks, which stand beside the host's reset_net and set_step_mode
ON_NETWORKS = ("materialize", "no_weight_decay", "parameter_groups", "swap_neurons")


class Registration(NamedTuple):
    """Where a name stands and whose object it is."""

    name: str
    #: the namespace, for example ``spikingjelly.activation_based.neuron``
    place: str
    #: ``'sj_ext'``, or ``'spikingjelly'`` where the host had the name already and keeps it
    owner: str


_registered: dict[tuple[str, str], tuple[Registration, object]] = {}
_waiting: list[WhenImported] = []
#: modules of the host that were loaded by ours of the same name, which is not complete yet


def register() -> list[Registration]:
    """Put every public name into SpikingJelly's namespaces; importing ``sj_ext`` does it.

    A name that the host has already is left alone: the host's object stays. Calling this again
    changes nothing.

    Returns:
        What :func:`registered` returns.
    """
    for name in INTO:
        _put_names_of(name, getattr(host, name))
    for name in WHOLE:
        _put(sys.modules[HOST_ROOT], name, _ours(name))
    for name in ON_NETWORKS:
        _put(host.functional, name, getattr(sys.modules[__package__], name, None))
    for name in INTO_WHEN_IMPORTED if _waiting else ():
        if f"{HOST_ROOT}.{name}" in sys.modules:
            _put_names_of(name, sys.modules[f"{HOST_ROOT}.{name}"])
    if not _waiting:
        for name in INTO_WHEN_IMPORTED:
            then = partial(_put_names_of, name)
            _waiting.append(WhenImported(f"{HOST_ROOT}.{name}", then))
    return registered()


def registered() -> list[Registration]:
    """Every name that is registered now, its namespace, and whose object it is there."""
    return [entry for entry, _ in _registered.values()]


def unregister() -> None:
    """Take the package's names out of SpikingJelly again; the host's own names stay.

    A name whose object somebody replaced since is theirs, and stays too.
    """
    while _waiting:
        _waiting.pop().forget()
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


def _ours(name: str) -> ModuleType | None:
    """Our module of that name, if there is one."""
    full_name = f"{__package__}.{name}"
    if importlib.util.find_spec(full_name) is None:
        return None
    return importlib.import_module(full_name)


def _put_names_of(name: str, place: ModuleType) -> None:
    """Put the public names of our module ``name`` into a module of the host."""
    source = _ours(name)
    # while our own module is being imported it has no names yet: it registers them at its end
    for public in getattr(source, "__all__", ()):
        _put(place, public, getattr(source, public))


def _put(place: ModuleType, name: str, value: object) -> None:
    key = (place.__name__, name)
    if value is None or key in _registered:
        return
    theirs = getattr(place, name, None)
    # ours is also what an earlier import of this package has left there, its modules dropped since
    owner = "sj_ext" if theirs is None or _from_this_package(theirs) else "spikingjelly"
    if owner == "sj_ext":
        setattr(place, name, value)
        if isinstance(value, ModuleType):
            # "import spikingjelly.activation_based.pruning" looks here
            sys.modules[f"{place.__name__}.{name}"] = value
    _registered[key] = (Registration(name, place.__name__, owner), value)


def _from_this_package(value: object) -> bool:
    where = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return isinstance(where, str) and where.partition(".")[0] == __package__
