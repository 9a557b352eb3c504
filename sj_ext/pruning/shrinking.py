"""A smaller dense network without the channels that were cut."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ..arguments import checked
from ..observe import at_rest
from .atoms import Graph
from .channels import channels_first, producing
from .dependency import trace
from .finished import forget
from .layers import is_prunable
from .masks import all_masks
from .resources.operations import run
from .sharding import is_sharded
from .wrappers import unwrapped

__all__ = ["carry_over", "shrink"]

O = TypeVar("O", bound=Optimizer)  # noqa: E741

#: where the smaller network says which indices of its parameters it has kept
KEPT = "_kept_channels"


@checked
def shrink(model: nn.Module, example_input: Any, *, tolerance: float = 1e-5) -> nn.Module:
    """A smaller dense network without the cut output channels.

    The data flow of ``example_input`` says what goes together: the outputs of layers that meet in a
    sum, their normalisations and learned potentials, and the inputs of the layers that read them. A
    channel goes where all that make it are silent, as a pruner with ``granularity='channel'``
    leaves them; of attention that is a head, and modules are told how many are left
    (``num_heads``, ``heads``). What the code of the network cannot do without stays. The result is
    run beside the masked network, in evaluation mode, and the outputs are compared.

    Args:
        model: a network with closed channel masks; it is not changed.
        example_input: one batch, a tuple of several inputs, or a mapping of named ones.
        tolerance: largest difference of the outputs, relative to the largest output.

    Returns:
        A plain copy, smaller, in the training mode of ``model``.

    Raises:
        ValueError: no mask is closed.
        RuntimeError: the outputs differ whatever is taken out, or the network is sharded.
    """
    model = unwrapped(model)
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise RuntimeError(
            "fully_shard (FSDP2) has split the network, and a smaller one needs whole weights: "
            "load the full state dict into a plain network, hold_masks, then shrink that"
        )
    if not any(mask.closed for _, _, _, mask in all_masks(model)):
        raise ValueError("model has no closed mask: shrink a network that a pruner has finished")
    with at_rest(model):
        plain = copy.deepcopy(model)
    forget(plain)
    graph = trace(plain, example_input)
    families = _silent_families(plain, graph)
    with at_rest(plain):
        want = run(plain, example_input)
    every = [root for roots in families for root in roots]
    small = _tried(plain, graph, every, example_input, want, tolerance)
    if small is None:  # not all at once: those that the network's code can do without
        taken: list[int] = []
        for roots in families:
            fits = _tried(plain, graph, [*taken, *roots], example_input, want, tolerance)
            if fits is not None:
                small, taken = fits, [*taken, *roots]
    if small is None:
        raise RuntimeError(
            "no silent channel can be taken out: the smaller network does not run, or its outputs "
            f"differ from the masked one's by more than {tolerance} of the largest"
        )
    for module, mode in zip(small.modules(), model.modules(), strict=True):
        module.training = mode.training
    return small


@checked
def carry_over(optimizer: O, model: nn.Module, small: nn.Module) -> O:
    """An optimizer for what :func:`shrink` returned, with the state of what is left.

    Args:
        optimizer: of ``torch.optim``, that trains ``model``; it is not changed.
        model: the masked network.
        small: its smaller copy.

    Returns:
        An optimizer of the same class, groups and settings.

    Raises:
        ValueError: ``optimizer`` has a parameter that is none of the model's.
    """
    names = {id(p): name for name, p in unwrapped(model).named_parameters()}
    after = dict(small.named_parameters())
    kept: dict[str, dict[int, torch.Tensor]] = vars(small).get(KEPT, {})
    groups = []
    for group in optimizer.param_groups:
        if any(id(p) not in names for p in group["params"]):
            raise ValueError("optimizer has a parameter that model has not")
        groups.append({**group, "params": [after[names[id(p)]] for p in group["params"]]})
    accepted = inspect.signature(type(optimizer)).parameters
    settings = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    made = type(optimizer)(groups, **settings)
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = names[id(p)]
            made.state[after[name]] = {
                key: _sliced(value, kept.get(name, {})) if _is_like(value, p) else value
                for key, value in copy.deepcopy(optimizer.state.get(p, {})).items()
            }
    return made


def _is_like(value: Any, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape


def _sliced(value: torch.Tensor, kept: dict[int, torch.Tensor]) -> torch.Tensor:
    for axis, index in kept.items():
        value = value.index_select(axis, index.to(value.device))
    return value


def _silent_families(model: nn.Module, graph: Graph) -> list[list[int]]:
    """Representatives of what can go, together where they are in the same axes."""
    producers = producing(model)
    silent = _silent_rows(model)
    found: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for root, atoms in graph.atoms.families().items():
        places = [place for atom in atoms if (place := graph.atoms.place[atom]) is not None]
        rows = [place for place in places if producers.get(place[0]) == place[1]]
        if rows and all((place[0], place[2]) in silent for place in rows):
            found[tuple(sorted({place[:2] for place in places}))].append(root)
    return list(found.values())


def _silent_rows(model: nn.Module) -> set[tuple[int, int]]:
    """Output channels without weights and bias: id of the weight, and index."""
    found: set[tuple[int, int]] = set()
    for module in model.modules():
        if is_prunable(module):
            layer: Any = module
            loud = channels_first(layer, layer.weight.detach()).flatten(1).any(1)
            if layer.bias is not None and len(layer.bias) == len(loud):
                loud = loud | (layer.bias.detach() != 0)
            found |= {(id(layer.weight), i) for i in (~loud).nonzero().flatten().tolist()}
    return found


def _tried(
    plain: nn.Module,
    graph: Graph,
    roots: Collection[int],
    example_input: Any,
    want: Any,
    tolerance: float,
) -> nn.Module | None:
    """The network without these channels, if it runs and computes the same."""
    small = _without(plain, graph, set(roots))
    try:
        with at_rest(small):
            got = run(small, example_input)
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return None
    for one, other in zip(tree_leaves(want), tree_leaves(got), strict=True):
        if isinstance(one, torch.Tensor):
            if one.shape != other.shape:
                return None
            if (one - other).abs().max() > tolerance * one.abs().max().clamp(min=1e-12):
                return None
    return small


@torch.no_grad()
def _without(plain: nn.Module, graph: Graph, roots: set[int]) -> nn.Module:
    """A copy of the network with these channels taken out of every parameter and buffer."""
    cuts: dict[int, dict[int, torch.Tensor]] = {}
    for key, axes in graph.rows.items():
        for axis, atoms in axes.items():
            stays = [i for i, a in enumerate(atoms.tolist()) if graph.atoms.find(a) not in roots]
            if len(stays) < len(atoms):
                cuts.setdefault(key, {})[axis] = torch.tensor(stays, dtype=torch.long)
    memo: dict[int, Any] = {}
    for tensor in (*plain.parameters(), *plain.buffers()):
        if id(tensor) in cuts:
            value = _sliced(tensor.detach(), cuts[id(tensor)]).clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    small = copy.deepcopy(plain, memo)
    for module in small.modules():
        _resize(module)
    paths = {module: path for path, module in plain.named_modules()}
    for (module, attribute), heads in graph.heads.items():
        left = sum(graph.atoms.find(head) not in roots for head in heads.tolist())
        setattr(small.get_submodule(paths[module]), attribute, left)
    names = {id(p): name for name, p in plain.named_parameters()}
    vars(small)[KEPT] = {names[key]: axes for key, axes in cuts.items() if key in names}
    return small


def _resize(module: Any) -> None:
    """Numbers that a layer keeps about its weights."""
    if isinstance(module, _BatchNorm):
        vectors = (module.running_mean, module.weight)
        sizes = [len(vector) for vector in vectors if vector is not None]
        module.num_features = sizes[0] if sizes else module.num_features
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif is_prunable(module):
        rows = channels_first(module, module.weight)
        if module.groups > 1 and len(rows) < module.out_channels:  # depthwise
            module.groups = module.in_channels = len(rows)
        elif module.groups == 1:
            module.in_channels = rows.shape[1]
        module.out_channels = len(rows)
