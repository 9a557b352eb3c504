"""What an argument may be: one error for one kind of mistake, everywhere in the package.

A value of the wrong kind is a :class:`TypeError`, one of the right kind but out of range a
:class:`ValueError`. Each names the argument, the value and what is allowed. Every function returns
the value in the form that the package computes with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = [
    "choice",
    "device",
    "flag",
    "floating",
    "function",
    "integer",
    "module",
    "number",
    "numbers",
    "shape",
    "sizes",
    "surrogate",
    "tensor",
]

V = TypeVar("V")


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """``value`` as a float, if it is a finite number within the bounds.

    Args:
        name: how the caller's user knows the argument.
        value: what was given. NumPy's scalars are numbers, ``True`` and tensors are none.
        above: open lower bound.
        at_least: closed lower bound.
        below: open upper bound.
        at_most: closed upper bound.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: it is NaN, infinite or out of bounds.
    """
    allowed = _bounds(above, at_least, below, at_most)
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number{_aside(allowed)}, got {shown(value)}")
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number{_aside(allowed)}, got {found}")
    if _outside(found, above, at_least, below, at_most):
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")
    return found


def integer(
    name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None
) -> int:
    """``value`` as an int, if it is a whole number within the bounds.

    Args:
        name: how the caller's user knows the argument.
        value: what was given; ``2.0`` and ``True`` are none.
        at_least: closed lower bound.
        at_most: closed upper bound.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: it is out of bounds.
    """
    allowed = _bounds(None, at_least, None, at_most)
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer{_aside(allowed)}, got {shown(value)}")
    found = int(value)
    if _outside(found, None, at_least, None, at_most):
        raise ValueError(f"{name} must be {allowed}, got {found}")
    return found


def numbers(name: str, values: Any, **bounds: float | None) -> tuple[float, ...]:
    """``values`` as a tuple of floats, if it is one or more numbers within the bounds.

    Args:
        name: how the caller's user knows the argument.
        values: a list, tuple or 1-d tensor of numbers.
        **bounds: those of :func:`number`, for each.

    Raises:
        TypeError: ``values`` are not several, or one of them is not a number.
        ValueError: there is none, or one is not finite or out of bounds.
    """
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of numbers, got {shown(values)}")
    found = tuple(number(f"{name}[{i}]", value, **bounds) for i, value in enumerate(values))
    if not found:
        raise ValueError(f"{name} must hold at least one number, got {shown(values)}")
    return found


def flag(name: str, value: Any) -> bool:
    """``value`` if it is True or False.

    Args:
        name: how the caller's user knows the argument.
        value: what was given; 0 and 1 are none.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def choice(name: str, value: V, allowed: Collection[V]) -> V:
    """``value`` if it is one of ``allowed``.

    Args:
        name: how the caller's user knows the argument.
        value: what was given.
        allowed: all values that there are; their kinds say which kind is right.

    Raises:
        TypeError: ``value`` is of a kind that none of them has.
        ValueError: it is of their kind, and none of them.
    """
    kinds = tuple({type(one) for one in allowed})
    message = f"{name} must be one of {tuple(allowed)}, got {shown(value)}"
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(message)
    if value not in allowed:
        raise ValueError(message)
    return value


def device(name: str, value: Any) -> torch.device:
    """``value`` as a device.

    Args:
        name: how the caller's user knows the argument.
        value: a device, or its name.

    Raises:
        TypeError: it is neither.
        ValueError: no device has this name.
    """
    message = f"{name} must be a device or its name, such as 'cpu' or 'cuda:0', got {shown(value)}"
    if not isinstance(value, str | torch.device):
        raise TypeError(message)
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ValueError(message) from error


def shape(name: str, value: Any, *, length: int | None = None) -> tuple[int, ...]:
    """``value`` as a tuple of sizes above 0.

    Args:
        name: how the caller's user knows the argument.
        value: a sequence of integers.
        length: how many there must be, where that is fixed.

    Raises:
        TypeError: ``value`` is not a sequence of integers.
        ValueError: a size is below 1, or there are not ``length`` of them.
    """
    many = "sizes" if length is None else f"{length} sizes"
    message = f"{name} must be {many} above 0, got {shown(value)}"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(message)
    if any(not isinstance(size, Integral) or isinstance(size, bool) for size in value):
        raise TypeError(message)
    if any(size < 1 for size in value) or (length is not None and len(value) != length):
        raise ValueError(message)
    return tuple(int(size) for size in value)


def sizes(**named: Any) -> None:
    """Raise unless every value is an integer of at least 1.

    Args:
        **named: values, by how the caller's user knows them.

    Raises:
        TypeError: one is not an integer.
        ValueError: one is below 1.
    """
    for name, value in named.items():
        integer(name, value, at_least=1)


def function(name: str, value: V, what: str = "a function") -> V:
    """``value`` if it can be called.

    Args:
        name: how the caller's user knows the argument.
        value: what was given.
        what: what is allowed, in words.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return value


def surrogate(
    value: Callable[[torch.Tensor], torch.Tensor], name: str = "surrogate_function"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """``value`` if it can stand for the Heaviside step.

    Args:
        value: what was given: an object of a surrogate, or a function; a class is neither.
        name: how the caller's user knows the argument.

    Raises:
        TypeError: it cannot be called, or is a class.
    """
    if isinstance(value, type):
        raise TypeError(f"{name} must be a surrogate, not its class: write {value.__name__}()")
    return function(name, value, "a surrogate such as sj_ext.surrogate.Rect()")


def module(name: str, value: Any, kind: type[V] | None = None) -> V:
    """``value`` if it is a network, or a module of ``kind``.

    Args:
        name: how the caller's user knows the argument.
        value: what was given.
        kind: the class that it must be of; any ``torch.nn.Module`` by default.

    Raises:
        TypeError: it is something else.
    """
    wanted: Any = nn.Module if kind is None else kind
    if isinstance(value, type) or not isinstance(value, wanted):
        what = "torch.nn.Module" if kind is None else wanted.__name__
        raise TypeError(f"{name} must be a {what}, got {shown(value)}")
    return value


def tensor(name: str, value: Any, *, dims: int | Collection[int] | None = None) -> torch.Tensor:
    """``value`` if it is a tensor, with the right number of axes.

    Args:
        name: how the caller's user knows the argument.
        value: what was given.
        dims: how many axes it may have; any number by default.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another number of axes.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {shown(value)}")
    allowed = (dims,) if isinstance(dims, int) else dims
    if allowed is not None and value.dim() not in allowed:
        many = " or ".join(map(str, allowed))
        raise ValueError(f"{name} must have {many} axes, got shape {list(value.shape)}")
    return value


def floating(name: str, value: Any, *, dims: int | Collection[int] | None = None) -> torch.Tensor:
    """``value`` if it is a tensor of a floating-point dtype, with the right number of axes.

    Args:
        name: how the caller's user knows the argument.
        value: what was given.
        dims: how many axes it may have; any number by default.

    Raises:
        TypeError: it is no tensor, or one of integers, booleans or complex numbers.
        ValueError: it has another number of axes.
    """
    found = tensor(name, value, dims=dims)
    if not found.is_floating_point():
        raise TypeError(f"{name} must be of a floating-point dtype, got {found.dtype}")
    return found


def _outside(
    value: float,
    above: float | None,
    at_least: float | None,
    below: float | None,
    at_most: float | None,
) -> bool:
    return (
        (above is not None and not value > above)
        or (at_least is not None and not value >= at_least)
        or (below is not None and not value < below)
        or (at_most is not None and not value <= at_most)
    )


def _bounds(
    above: float | None, at_least: float | None, below: float | None, at_most: float | None
) -> str:
    """The bounds in words."""
    if at_least is not None and at_most is not None:
        return f"between {at_least} and {at_most}"
    bounds = (("above", above), ("at least", at_least), ("below", below), ("at most", at_most))
    return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


def _aside(bounds: str) -> str:
    """The bounds behind a noun: an integer above 1, a number of at least 2."""
    of = "of " if bounds.startswith("at ") else ""
    return f" {of}{bounds}" if bounds else ""


def shown(value: object) -> str:
    """A value in an error: short, and with its kind where that says more."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)} and dtype {value.dtype}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
