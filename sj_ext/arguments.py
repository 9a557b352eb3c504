"""What a public function does with its arguments before its own first line.

:func:`checked` holds each argument against its annotation, so that a value of the wrong kind is the
same :class:`TypeError` everywhere; ranges are the function's own to check, with
:mod:`sj_ext.checks`. :func:`renamed` lets the keywords of an earlier release work.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import math
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import nn

from . import checks

__all__ = ["checked", "renamed"]

F = TypeVar("F", bound=Callable[..., Any])

#: builds the check of an alternative: does a value fit, and what is allowed, in words
Kind = tuple[Callable[[Any], bool], str]


def checked(target: F) -> F:
    """A function, or a class by its constructor, whose arguments are of the kinds it says.

    Annotations are read as text when it is first called: numbers (NaN is none), flags, text, None,
    classes, and sequences of these; an alternative of several may fit. What stands there besides is
    not looked at. Arguments that are left out are not looked at either.

    Raises:
        TypeError: at a call with an argument of another kind.
        ValueError: at a call with NaN for a number.
    """
    if isinstance(target, type):
        constructor = vars(target)["__init__"]
        setattr(target, "__init__", _checked(constructor, target.__module__))  # noqa: B010
        return target
    return typing.cast(F, _checked(target, target.__module__))


def renamed(**names: str) -> Callable[[F], F]:
    """A function that takes keywords of an earlier release, with a DeprecationWarning.

    Args:
        **names: the new name of each old one.

    Raises:
        TypeError: at a call that has both.
    """

    def around(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{new} is given twice, also by its old name {old}")
                kwargs[new] = kwargs.pop(old)
                warnings.warn(
                    f"the argument {old} of {function.__name__} is called {new} now; the old name "
                    "goes with the next release",
                    DeprecationWarning,
                    stacklevel=2,
                )
            return function(*args, **kwargs)

        return typing.cast(F, call)

    return around


def _checked(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    # read at the first call, so that importing the package reads no signature
    signature: inspect.Signature | None = None
    kinds: dict[str, list[Kind]] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal signature
        if signature is None:
            found = inspect.signature(function)
            kinds.update(_kinds(found, vars(sys.modules[module])))
            signature = found
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # the call itself is wrong, which Python says better
        for name, value in given.items():
            _check(name, value, kinds.get(name, []))
        return function(*args, **kwargs)

    return call


def _kinds(signature: inspect.Signature, scope: Mapping[str, Any]) -> dict[str, list[Kind]]:
    """What each argument may be."""
    return {
        name: [_kind(word, scope) for word in _words(parameter.annotation)]
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _check(name: str, value: Any, kinds: list[Kind]) -> None:
    if not kinds or any(fits(value) for fits, _ in kinds):
        return
    allowed = " or ".join(words for _, words in kinds)
    finite = _without_nan(value)
    if finite is not value and any(fits(finite) for fits, _ in kinds):
        allowed = allowed.replace("a number", "a finite number")
        raise ValueError(f"{name} must be {allowed}, got {value}")
    raise TypeError(f"{name} must be {allowed}, got {checks.shown(value)}")


def _words(annotation: Any) -> list[str]:
    """The alternatives of an annotation, as text; none where there is no annotation."""
    if annotation is inspect.Parameter.empty:
        return []
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return list(_split(text, "|"))


def _split(text: str, at: str) -> Iterator[str]:
    """The parts of a text between separators that stand in no brackets."""
    depth = start = 0
    for i, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        if letter == at and not depth:
            yield text[start:i].strip()
            start = i + 1
    yield text[start:].strip()


def _kind(word: str, scope: Mapping[str, Any]) -> Kind:
    """The check of one alternative; what is not known fits everything."""
    if word in _PLAIN:
        return _PLAIN[word]
    outer, _, inner = word.partition("[")
    if outer in _SEVERAL:
        fits, words = _SEVERAL[outer]
        elements = [] if outer in ("Iterable", "Mapping") else list(_split(inner[:-1], ","))
        if not elements or "" in elements:
            return fits, words
        if len(elements) == 1 or elements[1:] == ["..."]:
            parts = [_kind(part, scope) for part in _split(elements[0], "|")]
            either = lambda value: any(fit(value) for fit, _ in parts)  # noqa: E731
            return (lambda value: fits(value) and all(map(either, value))), (
                f"{words}, each {' or '.join(said for _, said in parts)}"
            )
        each = [_kind(part, scope) for part in elements]
        return (
            lambda value: (
                fits(value)
                and len(value) == len(each)
                and all(fit(one) for (fit, _), one in zip(each, value, strict=True))
            )
        ), f"{words} of {', '.join(said for _, said in each)}"
    found = _named(outer, scope)
    if typing.get_origin(found) is collections.abc.Callable or found is collections.abc.Callable:
        return callable, "a function"
    if isinstance(found, type):
        return (lambda value: isinstance(value, found)), f"a {found.__name__}"
    return (lambda value: True), word


def _named(name: str, scope: Mapping[str, Any]) -> Any:
    """What a dotted name stands for where the function was written, or None."""
    first, *rest = name.split(".")
    found = scope.get(first, getattr(builtins, first, None))
    for part in rest:
        found = getattr(found, part, None)
    return found


def _is_nan(value: Any) -> bool:
    return isinstance(value, Real) and math.isnan(value)


def _without_nan(value: Any) -> Any:
    """A value, or sequence of values, of the same kind that holds no NaN; itself if it has none."""
    if isinstance(value, list | tuple) and any(map(_is_nan, value)):
        return [1.0 if _is_nan(one) else one for one in value]
    return 1.0 if _is_nan(value) else value


def _is_several(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() > 0
    known = isinstance(value, Iterable) and hasattr(value, "__len__")
    return known and not isinstance(value, str | bytes | Mapping)


_PLAIN: Mapping[str, Kind] = {
    "Any": (lambda value: True, "anything"),
    "object": (lambda value: True, "anything"),
    "None": (lambda value: value is None, "None"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (
        lambda value: isinstance(value, Integral) and not isinstance(value, bool),
        "an integer",
    ),
    "float": (
        lambda value: (
            isinstance(value, Real) and not isinstance(value, bool) and not _is_nan(value)
        ),
        "a number",
    ),
    "str": (lambda value: isinstance(value, str), "text"),
    "type": (lambda value: isinstance(value, type), "a class"),
    "nn.Module": (lambda value: isinstance(value, nn.Module), "a torch.nn.Module"),
    "Tensor": (lambda value: isinstance(value, torch.Tensor), "a tensor"),
    "torch.Tensor": (lambda value: isinstance(value, torch.Tensor), "a tensor"),
}
_SEVERAL: Mapping[str, Kind] = {
    "Sequence": (_is_several, "a sequence"),
    "Collection": (_is_several, "a sequence"),
    "list": (_is_several, "a sequence"),
    "tuple": (_is_several, "a sequence"),
    "Iterable": (
        lambda value: isinstance(value, Iterable) and not isinstance(value, str | bytes),
        "a sequence",
    ),
    "Mapping": (lambda value: isinstance(value, Mapping), "a mapping"),
    "dict": (lambda value: isinstance(value, Mapping), "a mapping"),
}
