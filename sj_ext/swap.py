"""Replacing neurons in a network that exists already."""

from __future__ import annotations

import gc
import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from . import checks, host
from .arguments import renamed
from .materialization import materialize
from .neuron import LearnableInitialPotential, with_learnable_imp
from .parameters import answer_no_weight_decay

__all__ = ["swap_neurons"]

#: dictionaries of a module in which the swap itself looks
_OF_MODULES = ("_modules", "_parameters", "_buffers")

_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
)


@renamed(module="model")
def swap_neurons(
    model: nn.Module,
    mapping: Mapping[type, type],
    *,
    example_input: Any = None,
    **overrides: Any,
) -> int:
    """Replace neurons of exactly the mapped classes, in place, anywhere below ``model``.

    A new neuron keeps the old one's hyper-parameters (all of them if it is the same neuron with a
    learnable initial potential, else those that both constructors have, by name), learned
    parameters and buffers (the same tensors, so that an optimizer that holds them goes on),
    surrogate, step mode, backend, device, dtype, train or eval flag and hooks. A neuron that stands
    in several places stays shared. ``model.no_weight_decay()`` then names the parameters that
    :func:`sj_ext.no_weight_decay` does, for timm's optimizer factory.

    Args:
        model: the network; it may not be one of the neurons itself.
        mapping: old class to new class, for example ``{neuron.LIFNode: IMPLIFNode}``. Subclasses of
            an old class are left alone.
        example_input: a batch as the network takes it, or a tuple of its inputs: the sizes of the
            new parameters are then fixed at once, by :func:`sj_ext.materialize`.
        **overrides: arguments for the new neurons' constructors, over what is kept.

    Returns:
        How many neurons were replaced; a shared one counts once.

    Raises:
        TypeError: a key that is not a module class, a value that is not a neuron class, or an
            override that a new class does not take.
        ValueError: nothing was replaced, or ``model`` itself is a neuron to be replaced.

    Warns:
        UserWarning: a plain list, tuple, dict or attribute of a module still holds a replaced
            neuron, or an optimizer was built before the swap and lacks the new parameters.
    """
    checks.module("model", model)
    _check_mapping(mapping, overrides)
    if type(model) in mapping:
        raise ValueError(
            f"model itself is a {type(model).__name__}, which cannot be replaced in place: put "
            f"it into a container, or build the new neuron directly"
        )
    swapped: dict[nn.Module, nn.Module] = {}
    for parent, tensor in _parents_with_a_tensor(model):
        for name, child in parent._modules.items():
            target = mapping.get(type(child))
            if child is None or target is None:
                continue
            if child not in swapped:
                swapped[child] = _swapped(child, target, overrides, tensor)
            parent._modules[name] = swapped[child]
    if not swapped:
        names = ", ".join(old.__name__ for old in mapping)
        present = sorted(
            {type(m).__name__ for m in model.modules() if isinstance(m, host.base.MemoryModule)}
        )
        raise ValueError(
            f"mapping: the network has no {names}; the stateful modules that it has are "
            f"{', '.join(present) or 'none'}"
        )
    answer_no_weight_decay(model)
    host.structure_changed(model)  # 2.x remembers what there is to reset
    _warn_of_left_references(model, swapped)
    if example_input is not None:
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        materialize(model, *inputs)
    _warn_of_optimizers(model, swapped)
    return len(swapped)


def _warn_of_left_references(module: nn.Module, swapped: Mapping[nn.Module, nn.Module]) -> None:
    """Say where a replaced neuron is still held: what uses it there runs a neuron of its own."""
    old = {id(node) for node in swapped}
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute in _OF_MODULES or not _holds(value, old):
                continue
            where = f"{name}.{attribute}" if name else attribute
            warnings.warn(
                f"swap_neurons: the attribute {where} ({type(value).__name__}) still holds neurons "
                "that were replaced; fill it anew from the modules, or make it an nn.ModuleList",
                stacklevel=3,
            )


def _holds(value: object, old: set[int]) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds(item, old) for item in value)
    if isinstance(value, dict):
        return any(_holds(item, old) for item in value.values())
    return isinstance(value, nn.Module) and id(value) in old


def _warn_of_optimizers(module: nn.Module, swapped: Mapping[nn.Module, nn.Module]) -> None:
    """Say that an optimizer that trains this network does not train what the swap has added."""
    mine = {id(parameter) for parameter in module.parameters()}
    new = {id(parameter) for node in swapped.values() for parameter in node.parameters()}
    for candidate in gc.get_objects():
        if not issubclass(type(candidate), torch.optim.Optimizer):
            continue
        groups = getattr(candidate, "param_groups", ())
        held = {id(parameter) for group in groups for parameter in group["params"]}
        if held & mine and new - held:
            warnings.warn(
                f"swap_neurons: a {type(candidate).__name__} that was built before the swap lacks "
                f"{len(new - held)} parameters of the new neurons: build it after the swap, or "
                "give them to its add_param_group",
                stacklevel=3,
            )


def _check_mapping(mapping: Mapping[type, type], overrides: dict[str, Any]) -> None:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a mapping of old class to new class, got {mapping!r}")
    for old, new in mapping.items():
        if not (isinstance(old, type) and issubclass(old, nn.Module)):
            raise TypeError(f"mapping: a key must be a module class, got {old!r}")
        if not (
            isinstance(new, type)
            and issubclass(new, nn.Module)
            and issubclass(new, host.base.StepModule)
        ):
            raise TypeError(
                f"mapping: a value must be a neuron class (a module with a step mode), got {new!r}"
            )
        unknown = sorted(set(overrides) - set(_constructor_arguments(new)))
        if unknown:
            raise TypeError(
                f"overrides: {new.__name__} takes no {', '.join(unknown)}; it takes "
                f"{', '.join(_constructor_arguments(new))}"
            )


def _parents_with_a_tensor(
    module: nn.Module,
) -> Iterator[tuple[nn.Module, torch.Tensor | None]]:
    """Every module below ``module``, with a tensor that tells the device and dtype around it."""

    def walk(
        parent: nn.Module, inherited: torch.Tensor | None, seen: set[int]
    ) -> Iterator[tuple[nn.Module, torch.Tensor | None]]:
        if id(parent) in seen:
            return
        seen.add(id(parent))
        near = next(_floating_tensors(parent), inherited)
        yield parent, near
        for child in list(parent.children()):
            yield from walk(child, near, seen)

    yield from walk(module, None, set())


def _floating_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            yield tensor


def _constructor_arguments(cls: type) -> tuple[str, ...]:
    """Names of all arguments of a constructor, those that it passes on to its bases included."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names.update(
            (p.name, None)
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return tuple(names)


def _swapped(
    old: nn.Module, target: type, overrides: dict[str, Any], near: torch.Tensor | None
) -> nn.Module:
    kind: Any = type(old)
    if issubclass(target, LearnableInitialPotential) and target is with_learnable_imp(kind):
        new: nn.Module = target.from_node(old, **overrides)
    else:
        new = _constructed(old, target, overrides)
    own = next(_floating_tensors(old), near)
    if own is not None:
        new.to(device=own.device, dtype=own.dtype)
    return new


def _constructed(old: nn.Module, target: type, overrides: dict[str, Any]) -> nn.Module:
    """A neuron of another kind, with what its constructor has in common with the old neuron."""
    names = _constructor_arguments(target)
    kept = {name: getattr(old, name) for name in names if hasattr(old, name)}
    new: nn.Module = target(**{**kept, **overrides})
    for tensors in ("_parameters", "_buffers"):
        for name, tensor in getattr(old, tensors).items():
            if name in getattr(new, tensors) and name not in overrides:
                getattr(new, tensors)[name] = tensor
    for hooks in _HOOKS:
        if hooks in vars(old):
            vars(new)[hooks] = vars(old)[hooks]
    return new.train(old.training)
