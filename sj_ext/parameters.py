"""Parameter groups for an optimizer: which parameters weight decay must leave alone.

Four kinds of parameters are told apart by the module that they belong to and the name that they
have in it, whatever is wrapped around the module or stands between it and the parameter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from . import checks, host
from .arguments import renamed

__all__ = ["no_weight_decay", "parameter_groups"]

#: the base of every batch, instance and synchronised norm (the host's are subclasses), and the rest
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)
_NEURONS = (host.base.MemoryModule, host.surrogate.SurrogateFunctionBase)

#: the kinds of parameters that can be left without weight decay
_KINDS = ("bias", "norm", "neuron", "named")

#: names that wrappers put between those of a module and of its own
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


@renamed(module="model")
def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    lr: float | None = None,
    *,
    without: Collection[str] = _KINDS,
) -> list[dict[str, Any]]:
    """Two parameter groups for a ``torch.optim`` optimizer: with weight decay and without.

    It looks through what may be wrapped around the model or its parts: ``DistributedDataParallel``,
    FSDP, ``torch.compile``, ``AveragedModel``, checkpoint wrappers, parametrizations.

    Args:
        model: the network; lazy parameters may be there, since they stay the same objects.
        weight_decay: weight decay of the first group, 0 or more.
        lr: learning rate of both groups; the optimizer's own if ``None``.
        without: the kinds of parameters that have none:

            - ``'bias'``: biases;
            - ``'norm'``: parameters of normalisation layers;
            - ``'neuron'``: those of neurons and surrogates (initial potentials, decays, time
              constants, thresholds, temperatures);
            - ``'named'``: those that a module names in ``no_weight_decay``, a set of parameter
              names or a method that returns one, as timm's models have it; wildcards are allowed.

            The program of IMP-SNN leaves out all four; that of T-RevSNN ``('bias', 'norm')``, so
            that gains, scales and decays do decay there.

    Returns:
        ``[{"params": ..., "weight_decay": weight_decay}, {"params": ..., "weight_decay": 0.0}]``,
        each with ``"lr"`` if it was given. Every parameter is in exactly one group.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``weight_decay`` or ``lr`` is below 0; ``without`` names something else; or FSDP
            has made one flat parameter out of several, which then cannot be told apart.

    Source: the optimizers of the public programs of IMP-SNN (NeurIPS 2024) and T-RevSNN (ICML
    2024).
    """
    checks.number("weight_decay", weight_decay, at_least=0)
    if lr is not None:
        checks.number("lr", lr, at_least=0)
    names = no_weight_decay(model, without=without)
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if name not in names], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in names], "weight_decay": 0.0},
    ]
    if lr is not None:
        for group in groups:
            group["lr"] = lr
    return groups


@renamed(module="model")
def no_weight_decay(model: nn.Module, *, without: Collection[str] = _KINDS) -> set[str]:
    """Names of the parameters that weight decay must leave alone, as ``named_parameters`` has them.

    timm's optimizer factory asks a model for them by the method ``no_weight_decay()``. The models
    of this package have it, and so has a network after :func:`sj_ext.swap_neurons`. In a model of
    your own write ``def no_weight_decay(self): return sj_ext.no_weight_decay(self)``.

    Args:
        model: the network.
        without: as for :func:`parameter_groups`.

    Raises:
        TypeError, ValueError: as :func:`parameter_groups`.
    """
    checks.module("model", model)
    kinds = _checked_kinds(without)
    exempt: set[int] = set()
    for child in model.modules():
        for name, parameter in _own_parameters(child):
            if getattr(parameter, "_is_flat_param", False):
                raise ValueError(
                    "model holds a flat parameter of FSDP, in which those with and without weight "
                    "decay are one: wrap it with use_orig_params=True, or use fully_shard"
                )
            if kinds & _kinds_of(child, name):
                exempt.add(id(parameter))
        if "named" in kinds:
            exempt |= _named_by(child)
    return {name for name, parameter in model.named_parameters() if id(parameter) in exempt}


def answer_no_weight_decay(module: nn.Module) -> None:
    """Let ``module.no_weight_decay()`` answer, beside what the class of ``module`` names itself."""
    module.no_weight_decay = functools.partial(no_weight_decay, module)  # type: ignore[assignment]


def _checked_kinds(without: Collection[str]) -> set[str]:
    if isinstance(without, str) or not isinstance(without, Collection):
        raise TypeError(f"without must be a collection of {_KINDS}, got {without!r}")
    return {checks.choice("each of without", kind, _KINDS) for kind in without}


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's parameters under the names that it knows them by.

    Those in its lists stand under the list's name, and parametrized ones under their own.
    """
    yield from module.named_parameters(recurse=False)
    for name, child in module.named_children():
        if _holds_parameters_only(child):
            yield from ((name, parameter) for parameter in child.parameters())
    if parametrize.is_parametrized(module):
        parametrized: Any = module.parametrizations
        for name, steps in parametrized.items():
            yield from ((name, original) for original in steps.parameters(recurse=False))


def _holds_parameters_only(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):
        return len(module) > 0 and all(_holds_parameters_only(child) for child in module)
    return isinstance(module, nn.ParameterList | nn.ParameterDict)


def _kinds_of(module: nn.Module, name: str) -> set[str]:
    """The kinds of a module's own parameter, as far as its place tells."""
    kinds = set()
    if name == "bias" or name.startswith("bias_") or name.endswith("_bias"):
        kinds.add("bias")
    if isinstance(module, _NORMS):
        kinds.add("norm")
    if isinstance(module, _NEURONS):
        kinds.add("neuron")
    return kinds


#: modules whose ``no_weight_decay`` is being asked, which may ask this module in turn
_ASKED: ContextVar[frozenset[int]] = ContextVar("_ASKED", default=frozenset())


def _named_by(module: nn.Module) -> set[int]:
    """The parameters that ``module`` names in its ``no_weight_decay``, by id."""
    patterns = _declared(module)
    if not patterns:
        return set()
    return {
        id(parameter)
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if _matches(name, patterns)
    }


def _declared(module: nn.Module) -> set[str]:
    if id(module) in _ASKED.get():
        return set()
    token = _ASKED.set(_ASKED.get() | {id(module)})
    try:
        source = vars(module).get("no_weight_decay")
        if source is None or getattr(source, "func", None) is no_weight_decay:
            # the class's own, past what answer_no_weight_decay has put before it
            source = inspect.getattr_static(type(module), "no_weight_decay", ())
            if hasattr(source, "__get__"):
                source = source.__get__(module, type(module))
        return set(source() if callable(source) else source)
    finally:
        _ASKED.reset(token)


def _matches(name: str, patterns: set[str]) -> bool:
    """Whether a parameter, or a list or module that it is in, has one of the names."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if "parametrizations" in parts[:-2]:
        parts = [part for part in parts[:-1] if part != "parametrizations"]
    clean = ".".join(parts)
    return any(
        found == pattern or found.startswith(f"{pattern}.") or fnmatchcase(found, pattern)
        for pattern in patterns
        for found in (name, clean)
    )
