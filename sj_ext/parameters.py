"""Parameter groups for an optimizer: which parameters weight decay must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from . import host

__all__ = ["parameter_groups"]

#: the base of every batch, instance and synchronised norm (the host's are subclasses), and the rest
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def parameter_groups(
    module: nn.Module, weight_decay: float, lr: float | None = None
) -> list[dict[str, Any]]:
    """Two parameter groups for a ``torch.optim`` optimizer: with weight decay and without.

    Without it are the parameters of neurons (initial potentials, decays, time constants,
    thresholds), those of normalisation layers, and those that a module names in an attribute
    ``no_weight_decay`` (a set of parameter names, as in timm).

    Args:
        module: the model; lazy parameters may be there, since they stay the same objects.
        weight_decay: weight decay of the first group, 0 or more.
        lr: learning rate of both groups; the optimizer's own if ``None``.

    Returns:
        ``[{"params": ..., "weight_decay": weight_decay}, {"params": ..., "weight_decay": 0.0}]``,
        each with ``"lr"`` if it was given. Every parameter is in exactly one group.

    Raises:
        ValueError: ``weight_decay`` or ``lr`` is below 0.
    """
    for name, value in (("weight_decay", weight_decay), ("lr", lr)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value!r}")
    exempt = {
        id(parameter)
        for child in module.modules()
        for name, parameter in _own_parameters(child)
        if _is_exempt(child, name)
    }
    parameters = list(module.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in exempt], "weight_decay": 0.0},
    ]
    if lr is not None:
        for group in groups:
            group["lr"] = lr
    return groups


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's parameters, those that it keeps in lists included, under the lists' name."""
    yield from module.named_parameters(recurse=False)
    for name, child in module.named_children():
        if _holds_parameters_only(child):
            yield from ((name, parameter) for parameter in child.parameters())


def _holds_parameters_only(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):
        return len(module) > 0 and all(_holds_parameters_only(child) for child in module)
    return isinstance(module, nn.ParameterList | nn.ParameterDict)


def _is_exempt(module: nn.Module, name: str) -> bool:
    if isinstance(module, (*_NORMS, host.base.MemoryModule, host.surrogate.SurrogateFunctionBase)):
        return True
    return name in _named_exempt(module)


def _named_exempt(module: nn.Module) -> set[str]:
    names = getattr(module, "no_weight_decay", ())
    return set(names() if callable(names) else names)
