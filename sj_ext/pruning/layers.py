"""Which layers are pruned, and which are left dense but count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeGuard

from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["PRUNABLE", "Site", "choose", "is_prunable", "weight_layers", "weight_sites"]

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
    """True where the layer multiplies with a standardised weight, whose zeros are no zeros.

    The package's own leave zeros out.
    """
    own = hasattr(module, "skip_zeros")
    return not own and (hasattr(module, "get_weight") or hasattr(module, "effective_weight"))


def weight_layers(model: nn.Module, none_is_fine: bool = False) -> dict[str, nn.Module]:
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
    if not found and not none_is_fine:
        raise ValueError(
            "model has no layer to prune: none is a Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d"
        )
    return found


class Site(NamedTuple):
    """Where a weight lives, and which module's forward uses it."""

    module: nn.Module
    attribute: str
    runs: nn.Module


def weight_sites(model: nn.Module, none_is_fine: bool = False) -> dict[str, Site]:
    """Every weight that counts, by name.

    A linear or convolutional layer has one under its own name. ``nn.MultiheadAttention``,
    ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` have several, under the names of their parameters.

    Raises:
        ValueError: as :func:`weight_layers`.
    """
    found: dict[str, Site] = {}
    inside: dict[nn.Module, nn.Module] = {}  # an attention uses its output layer by itself
    for name, module in model.named_modules():
        if is_prunable(module):
            found[name] = Site(module, "weight", inside.get(module, module))
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            for key, parameter in module.named_parameters(recurse=False):
                if "weight" in key and parameter.dim() > 1:
                    found[f"{name}.{key}" if name else key] = Site(module, key, module)
            if isinstance(module, nn.MultiheadAttention):
                inside[module.out_proj] = module
    if not found and not none_is_fine:
        weight_layers(model)  # says so
    return found


def bare_sites(model: nn.Module, known: Mapping[str, Site]) -> dict[str, Site]:
    """Parameters of two or more axes that belong to no known layer, by their full names."""
    seen = {(id(site.module), site.attribute) for site in known.values()}
    found = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and (id(module), key) not in seen:
                found[f"{name}.{key}" if name else key] = Site(module, key, module)
    return found


def _is_predicate(entry: object) -> TypeGuard[Callable[[str, nn.Module], bool]]:
    return callable(entry) and not isinstance(entry, nn.Module)


def _matches(entry: object, known: Mapping[str, Site]) -> set[str]:
    """Names of the weights that an entry of ``layers`` means."""
    if isinstance(entry, str):
        hits = {name for name in known if fnmatchcase(name, entry)}
        return hits | {name for name in known if name.startswith(f"{entry}.")}
    if isinstance(entry, type):
        return {name for name, site in known.items() if isinstance(site.module, entry)}
    if _is_predicate(entry):
        return {name for name, site in known.items() if entry(name, site.module)}
    raise TypeError(
        f"layers must hold names, types or predicates (name, module) -> bool, got {entry!r}"
    )


def choose(
    model: nn.Module,
    layers: Chooser | Iterable[Chooser] | None,
    first: bool,
    last: bool,
) -> tuple[dict[str, Site], dict[str, Site]]:
    """The weights to prune, and all that count, by name, in the model's own order.

    A frozen layer stays dense unless it is named in full; one whose weights somebody else
    standardises always does.

    Args:
        model: where to look.
        layers: names (``*`` and ``?`` match), types, or predicates ``(name, module) -> bool``, one
            or several; None for all. A bare parameter is chosen, and counts, by its full name.
        first: also prune the first layer; a layer given by its full name is pruned in any case.
        last: the same for the last layer.

    Raises:
        TypeError: an entry of ``layers`` is neither a name, nor a type, nor callable.
        ValueError: an entry matches nothing, a layer cannot be pruned, or no layer is left.
    """
    weight_layers(model, none_is_fine=True)
    known = weight_sites(model)
    bare = bare_sites(model, known)
    if layers is None:
        entries: list[Chooser] = [lambda name, module: True]
    elif isinstance(layers, (str, type)) or _is_predicate(layers):
        entries = [layers]
    elif not isinstance(layers, Iterable):
        raise TypeError(
            f"layers must be names, types or predicates (name, module) -> bool, got {layers!r}"
        )
    else:
        entries = list(layers)
    chosen: set[str] = set()
    named: set[str] = set()
    for entry in entries:
        if isinstance(entry, str) and entry in bare:
            known[entry] = bare[entry]
        hits = _matches(entry, known)
        if isinstance(entry, str):
            named |= hits & {entry}
        if not hits:
            raise ValueError(
                f"layers: {entry!r} matches no linear or convolutional layer; there are "
                f"{', '.join(known)}" + (f", and by full name {', '.join(bare)}" if bare else "")
            )
        chosen |= hits
    names = list(known)
    if not first:
        chosen -= {names[0]} - named
    if not last:
        chosen -= {names[-1]} - named
    for name in [name for name in names if name in chosen]:
        site = known[name]
        if standardises(site.module) and name in named:
            raise ValueError(
                f"layer {name!r} ({type(site.module).__name__}) multiplies with a standardised "
                "weight, whose zeros are no zeros: leave it out"
            )
        frozen = not getattr(site.module, site.attribute).requires_grad and name not in named
        if frozen or standardises(site.module):
            chosen.discard(name)
    if not chosen:
        raise ValueError(
            "no layer is left to prune: the first layer stays dense unless first=True (with "
            "channels also the last unless last=True), layers with standardised weights always do, "
            f"and frozen ones unless they are named; the model has {', '.join(known)}"
        )
    return {name: known[name] for name in names if name in chosen}, known
