"""Weights of the public programs: which name there is which tensor here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...arguments import checked

__all__ = ["PublishedNames", "load_published", "published_names"]


@dataclass(frozen=True)
class PublishedNames:
    """How a program names what a model of ours holds.

    A name of the program is rewritten by every rule in turn; what ``dead`` matches is in its files
    but nowhere in its computation.
    """

    #: which program, as an error calls it
    program: str
    #: pairs of a regular expression and what stands in its place (a string, or a function of the
    #: match, as in ``re.sub``), applied in this order
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
    #: regular expressions of names that the program never uses
    dead: tuple[str, ...] = ()

    def ours(self, name: str) -> str | None:
        """Our name of a tensor, or None where the program never uses it."""
        if any(re.search(pattern, name) for pattern in self.dead):
            return None
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


def load_published(model: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """Load a checkpoint of the public program into one of our models.

    Args:
        model: a model of :mod:`sj_ext.model.transformer` with the sizes of the checkpoint.
        state_dict: names and tensors as the program saved them; a checkpoint that holds them under
            ``'model'`` or ``'state_dict'``, or with ``'module.'`` before every name, is unwrapped.

    Returns:
        Names of the checkpoint that the program never uses, which are left out.

    Shapes:
        Those of the program; a 1 x 1 convolution may be a linear layer there, or have an axis more
        or less.

    Raises:
        TypeError: ``model`` is none of these models, or ``state_dict`` is no mapping.
        ValueError: the checkpoint is of another variant or size: a name is missing or not known, or
            a shape differs; the message names it. Nothing is loaded then.
    """
    state = _unwrapped(state_dict)
    names = published_names(model, state)
    program = model.published.program  # type: ignore[union-attr]
    targets = model.state_dict()
    dead = [name for name, ours in names.items() if ours is None]
    sources = {ours: name for name, ours in names.items() if ours is not None}
    unknown = sorted(sources[ours] for ours in sources.keys() - targets.keys())
    missing = sorted(targets.keys() - sources.keys())
    if unknown or missing:
        found = [f"unknown names, first {unknown[0]}"] if unknown else []
        found += [f"nothing for {missing[0]}"] if missing else []
        raise ValueError(
            f"state_dict must be of this variant of {program}, but it has {' and '.join(found)} "
            f"({len(unknown)} unknown, {len(missing)} missing)"
        )
    for ours, name in sources.items():
        if not _same_map(state[name].shape, targets[ours].shape):
            raise ValueError(
                f"state_dict: {name} must have the shape {list(targets[ours].shape)} of this "
                f"model, got {list(state[name].shape)}"
            )
    model.load_state_dict(
        {ours: state[name].reshape(targets[ours].shape) for ours, name in sources.items()}
    )
    return dead


@checked
def published_names(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, str | None]:
    """Our name for every name of a program's state dict; None for what the program never uses.

    Args:
        model: a model of :mod:`sj_ext.model.transformer`.
        state_dict: names as the program saved them.

    Shapes:
        Tensors are not looked at: of any shape ``[*]``.

    Raises:
        TypeError: ``model`` has no public program.
    """
    published = getattr(model, "published", None)
    if not isinstance(published, PublishedNames):
        raise TypeError(
            f"model must be one whose program has published weights, got a {type(model).__name__}"
        )
    return {name: published.ours(name) for name in state_dict}


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict must be a mapping of names to tensors, got a {type(state_dict).__name__}"
        )
    for key in ("model", "state_dict"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    wrong = [name for name, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise TypeError(f"state_dict must hold tensors only, but {wrong[0]} is none")
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def _same_map(a: torch.Size, b: torch.Size) -> bool:
    """Whether two shapes are of one linear map, whatever axes of size 1 follow or lead."""

    def core(shape: torch.Size) -> tuple[int, ...]:
        sizes = list(shape)
        while len(sizes) > 2 and sizes[-1] == 1:
            sizes.pop()
        return tuple(sizes)

    return core(a) == core(b)
