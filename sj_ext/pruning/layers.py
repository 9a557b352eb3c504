"""Which layers are pruned, and which are left dense but count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["PRUNABLE", "choose", "is_prunable", "weight_layers"]

#: SpikingJelly's layers of the same names are subclasses of these
PRUNABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Chooser = str | type | Callable[[str, nn.Module], bool]


def is_prunable(module: nn.Module) -> bool:
    """True for a linear or convolutional layer that has a weight."""
    return isinstance(module, PRUNABLE) and getattr(module, "weight", None) is not None


def standardises(module: nn.Module) -> bool:
    """True where the layer multiplies with a standardised weight, whose zeros are no zeros."""
    return hasattr(module, "get_weight") or hasattr(module, "effective_weight")


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear and convolutional layer by name; one that shares a module counts once.

    Raises:
        ValueError: the model has lazy parameters that do not exist yet, or no such layer.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"model has lazy parameters that do not exist yet (the first is {name!r}): run one "
                "forward pass before the pruner is built"
            )
    found = {name: module for name, module in model.named_modules() if is_prunable(module)}
    if not found:
        raise ValueError(
            "model has no layer to prune: none is a Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d"
        )
    return found


def choose(
    model: nn.Module,
    layers: Chooser | Iterable[Chooser] | None,
    first: bool,
    last: bool,
) -> dict[str, nn.Module]:
    """The layers to prune, by name, in the model's own order.

    Args:
        model: where to look.
        layers: names (``*`` and ``?`` match), types, or predicates ``(name, module) -> bool``, one
            or several; None for all.
        first: also prune the first layer; a layer given by its full name is pruned in any case.
        last: the same for the last layer.

    Raises:
        TypeError: an entry of ``layers`` is neither a name, nor a type, nor callable.
        ValueError: an entry matches nothing, a layer cannot be pruned, or no layer is left.
    """
    known = weight_layers(model)
    if layers is None:
        entries: list[Chooser] = [lambda name, module: True]
    elif isinstance(layers, (str, type)) or callable(layers):
        entries = [layers]
    else:
        entries = list(layers)
    chosen, named = set(), set()
    for entry in entries:
        if isinstance(entry, str):
            hits = {name for name in known if fnmatchcase(name, entry)}
            named |= hits & {entry}
        elif isinstance(entry, type):
            hits = {name for name, module in known.items() if isinstance(module, entry)}
        elif callable(entry):
            hits = {name for name, module in known.items() if entry(name, module)}
        else:
            raise TypeError(
                f"layers must hold names, types or predicates (name, module) -> bool, got {entry!r}"
            )
        if not hits:
            raise ValueError(
                f"layers: {entry!r} matches no linear or convolutional layer; there are "
                f"{', '.join(known)}"
            )
        chosen |= hits
    names = list(known)
    if not first:
        chosen -= {names[0]} - named
    if not last:
        chosen -= {names[-1]} - named
    for name in [name for name in names if name in chosen and standardises(known[name])]:
        if name in named:
            raise ValueError(
                f"layer {name!r} ({type(known[name]).__name__}) multiplies with a standardised "
                "weight, whose zeros are no zeros: leave it out"
            )
        chosen.discard(name)
    if not chosen:
        raise ValueError(
            "no layer is left to prune: the first layer stays dense unless first=True (with "
            "channels also the last unless last=True), layers with standardised weights always do; "
            f"the model has {', '.join(known)}"
        )
    return {name: known[name] for name in names if name in chosen}
