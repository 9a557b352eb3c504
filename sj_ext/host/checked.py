"""The arguments of the host's own neurons, checked before its assertions see them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from spikingjelly.activation_based import base

from .. import checks

__all__ = ["checked_arguments"]


def checked_arguments(
    cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a class that mixes into a neuron of the host gives to it: whole numbers as floats.

    Where the neuron is the user's or of this package it knows its arguments itself.

    Args:
        cls: the class whose object is made.
        args: positional arguments of the host's neuron.
        kwargs: all other arguments.

    Raises:
        TypeError: an argument of the wrong kind, for the host's neurons an AssertionError.
        ValueError: a value out of range, in the same way.
    """
    neuron = next((c for c in cls.__mro__ if c.__module__.startswith("spikingjelly.")), cls)
    nodes = (c for c in cls.__mro__ if issubclass(c, base.MemoryModule) and not _mixes(c))
    if next(nodes, None) is not neuron:
        return args, kwargs
    names = [*inspect.signature(neuron).parameters][: len(args)]
    named = {name: _checked(name, value) for name, value in kwargs.items()}
    if len(names) < len(args):
        return args, named  # too many, which Python says
    return tuple(map(_checked, names, args)), named


def _mixes(cls: type) -> bool:
    """Whether a class only adds to a neuron that stands behind it."""
    return hasattr(cls, "initial_potential")


def _checked(name: str, value: Any) -> Any:
    return _CHECKS[name](name, value) if name in _CHECKS else value


def _time_constant(name: str, value: Any) -> float:
    return checks.number(name, value, above=1)


def _number_or_none(name: str, value: Any) -> float | None:
    return None if value is None else checks.number(name, value)


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the name of a backend, got {checks.shown(value)}")
    return value


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "tau": _time_constant,
    "init_tau": _time_constant,
    "backend": _name,
    "v_threshold": checks.number,
    "v_reset": _number_or_none,
    "decay_input": checks.flag,
    "detach_reset": checks.flag,
    "store_v_seq": checks.flag,
    "surrogate_function": lambda name, value: checks.surrogate(value, name),
    "step_mode": lambda name, value: checks.choice(name, value, ("s", "m")),
}
