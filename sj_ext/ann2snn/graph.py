"""The trained network as a graph: traced, norms folded, one module for every activation.

What comes out of :func:`prepare` is still the trained network. Its activations are modules that are
called once each, so that a name stands for one place in the network.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .. import checks, host
from .activation import QuantizedClip

__all__ = ["ACTIVATIONS", "activation_nodes", "activation_of", "own_call", "prepare", "trace"]

#: modules that a spiking neuron can take the place of; a Hardtanh must start at 0
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, QuantizedClip)

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_DROPOUT_CALLS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)
_FOLDABLE = (
    (nn.Conv1d, nn.BatchNorm1d),
    (nn.Conv2d, nn.BatchNorm2d),
    (nn.Conv3d, nn.BatchNorm3d),
    (nn.ConvTranspose1d, nn.BatchNorm1d),
    (nn.ConvTranspose2d, nn.BatchNorm2d),
    (nn.ConvTranspose3d, nn.BatchNorm3d),
    (nn.Linear, nn.BatchNorm1d),
)


class _Tracer(fx.Tracer):
    """Goes down to layers of torch, of the host and of this package, and what the user names."""

    def __init__(self, leaf_modules: tuple[type, ...]):
        super().__init__()
        self._leaves = (*ACTIVATIONS, host.base.StepModule, *leaf_modules)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)


def trace(
    net: nn.Module,
    leaf_modules: Sequence[type] = (),
    concrete_args: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """The graph of a network; a ``GraphModule`` is taken as it is.

    Args:
        net: the network.
        leaf_modules: module classes that stay one node.
        concrete_args: arguments of ``forward`` that are fixed, as in ``torch.fx``.

    Returns:
        A graph that shares the modules of ``net``, which is left as it is.

    Raises:
        TypeError: ``net`` is no module.
        ValueError: the network cannot be traced, with what to do.
    """
    checks.module("model", net)
    if isinstance(net, fx.GraphModule):
        return net
    try:
        tracer = _Tracer(tuple(leaf_modules))
        graph = tracer.trace(net, None if concrete_args is None else dict(concrete_args))
    except Exception as error:
        raise ValueError(
            f"model: torch.fx cannot trace {type(net).__name__} ({error}); give the class of the "
            f"part that it stops in as leaf_modules, fix arguments by concrete_args, or pass a "
            f"torch.fx.GraphModule of your own"
        ) from error
    return fx.GraphModule(tracer.root, graph)


def prepare(
    net: nn.Module,
    leaf_modules: Sequence[type] = (),
    concrete_args: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """A copy of the network in evaluation, ready to be observed and converted.

    Dropout is gone, batch norms are folded into the layer before them, and every activation,
    module or call, is a module of its own that is called once.

    Args:
        net: the network, which is left as it is.
        leaf_modules: as for :func:`trace`.
        concrete_args: as for :func:`trace`.

    Returns:
        The graph module; :func:`activation_nodes` lists its activations.

    Raises:
        TypeError: ``net`` is no module.
        ValueError: it cannot be traced, has neurons already, or a batch norm without statistics.
    """
    with evaluating(checks.module("model", net)):
        graph = copy.deepcopy(trace(net, leaf_modules, concrete_args)).eval()
    _refuse_neurons(graph)
    _as_layers_of_torch(graph)
    _drop_assertions(graph)
    _drop_dropout(graph)
    _fold_norms(graph)
    _own_activations(graph)
    return _cleaned(graph)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """A trained network in evaluation and without gradients; afterwards as it was.

    It has no memories, so nothing is reset: the host would remember that there is nothing to reset
    even after the network got neurons.
    """
    training = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag


def modules_called(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Module]]:
    """Every call of a module, in the graph's order."""
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            yield node, graph.get_submodule(str(node.target))


def activation_nodes(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Nodes of the activations of a prepared network by name, in the graph's order."""
    return {
        str(node.target): node
        for node, module in modules_called(graph)
        if isinstance(module, ACTIVATIONS)
    }


def put_submodule(graph: fx.GraphModule, target: str, module: nn.Module) -> None:
    """Put a module at a dotted name, over what stands there."""
    parent, _, child = target.rpartition(".")
    owner: nn.Module = graph
    for part in filter(None, parent.split(".")):
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner._modules[child] = module


def free_name(graph: fx.GraphModule, wanted: str) -> str:
    """``wanted``, or with the first number that makes it new."""
    taken = {name for name, _ in graph.named_modules(remove_duplicate=False)}
    name, number = wanted, 0
    while name in taken or hasattr(graph, name):
        number += 1
        name = f"{wanted}_{number}"
    return name


def own_call(graph: fx.GraphModule, node: fx.Node, module: nn.Module, name: str) -> fx.Node:
    """Put a call of ``module`` with the node's first argument in the place of ``node``."""
    put_submodule(graph, name, module)
    with graph.graph.inserting_after(node):
        call = graph.graph.call_module(name, (_first_argument(node),))
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call


def activation_of(node: fx.Node) -> nn.Module | None:
    """The module that does what an activating call of a function or a method does."""
    if node.op not in ("call_function", "call_method"):
        return None
    make = _CALLS.get(node.target)
    return None if make is None else make(node)


def _first_argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _clamp(node: fx.Node) -> nn.Module | None:
    low, high = _argument(node, 1, "min"), _argument(node, 2, "max")
    if low != 0 or isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    return nn.ReLU() if high is None else nn.Hardtanh(0.0, float(high))


def _hardtanh(node: fx.Node) -> nn.Module | None:
    low, high = _argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0)
    return nn.Hardtanh(0.0, float(high)) if low == 0 else None


def _leaky(node: fx.Node) -> nn.Module:
    return nn.LeakyReLU(_argument(node, 1, "negative_slope", 0.01))


def _relu(node: fx.Node) -> nn.Module:
    return nn.ReLU()


_CALLS: dict[Any, Callable[[fx.Node], nn.Module | None]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    F.relu6: lambda node: nn.ReLU6(),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((torch.clamp, torch.clip, torch.clamp_, torch.clip_), _clamp),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), _clamp),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"), _clamp),
}


def _refuse_neurons(graph: fx.GraphModule) -> None:
    for name, module in graph.named_modules():
        if isinstance(module, host.base.MemoryModule):
            raise ValueError(
                f"net is not a network of activations only: {name!r} is a {type(module).__name__}"
            )


def _as_layers_of_torch(graph: fx.GraphModule) -> None:
    """Take the step mode from the host's stateless layers: the graph handles the steps itself."""
    for name, module in list(graph.named_modules()):
        if not isinstance(module, host.base.StepModule):
            continue
        twin = next((c for c in type(module).__mro__ if c.__module__.startswith("torch.nn")), None)
        if twin in (None, nn.Module):
            raise ValueError(
                f"model: {name!r} is a {type(module).__name__} of the host, which extends no layer "
                f"of torch; give a network of torch's layers"
            )
        module.__class__ = twin


def _drop_assertions(graph: fx.GraphModule) -> None:
    """Take out what tracing put in to check fixed arguments, and those arguments."""
    used = [node for node in graph.graph.nodes if node.op == "placeholder" and node.users]
    for node in list(graph.graph.nodes):
        if node.target is torch._assert:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    for node in used:
        if not node.users:
            graph.graph.erase_node(node)


def _drop_dropout(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        called = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(called, _DROPOUTS) or node.target in _DROPOUT_CALLS:
            node.replace_all_uses_with(_first_argument(node))
            graph.graph.erase_node(node)


def _fold_norms(graph: fx.GraphModule) -> None:
    calls: dict[str, int] = {}
    for node, _ in modules_called(graph):
        calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node, norm in modules_called(graph):
        before = node.args[0] if node.args else None
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is None:
            raise ValueError(
                f"model: {node.target!r} ({type(norm).__name__}) keeps no running statistics, and "
                f"would normalise by the batch of every step"
            )
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer = graph.get_submodule(str(before.target))
        if not any(isinstance(layer, a) and isinstance(norm, b) for a, b in _FOLDABLE):
            continue
        name = str(before.target)
        if calls[name] > 1:  # a shared layer, with a norm of its own at each place
            name = free_name(graph, name)
        put_submodule(graph, name, _folded(layer, norm))
        before.target = name
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _folded(layer: Any, norm: Any) -> nn.Module:
    """One layer for two, folded in float64 and rounded once."""
    dtype = layer.weight.dtype
    layer, norm = copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
    if isinstance(layer, nn.Linear):
        folded: nn.Module = fuse_linear_bn_eval(layer, norm)
    else:
        folded = fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.modules.conv._ConvTransposeNd))
    return folded.to(dtype).eval()


def _own_activations(graph: fx.GraphModule) -> None:
    seen: set[str] = set()
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            module = graph.get_submodule(node.target)
            if not isinstance(module, ACTIVATIONS):
                continue
            name = str(node.target)
            if name in seen:
                name = free_name(graph, name)
                put_submodule(graph, name, copy.deepcopy(module))
                node.target = name
            seen.add(name)
            _check_activation(name, graph.get_submodule(name))
        else:
            activation = activation_of(node)
            if activation is not None:
                name = free_name(graph, _place(node))
                own_call(graph, node, activation, name)
                seen.add(name)


def _check_activation(name: str, module: Any) -> None:
    if isinstance(module, nn.Hardtanh) and module.min_val != 0:
        raise ValueError(
            f"model: {name!r} is a Hardtanh from {module.min_val}, and only one from 0 has a "
            f"spiking counterpart; replace it by QuantizedClip or clamp(min=0)"
        )
    if hasattr(module, "inplace"):
        module.inplace = False  # its input is observed


def _place(node: fx.Node) -> str:
    """The name for a call: that of the module whose forward it stands in, and its own."""
    stack = node.meta.get("nn_module_stack") or {}
    owner = str(next(reversed(stack), "")) if stack else ""
    owner = owner.split("@")[0]
    return f"{owner}.{node.name.rsplit('.', 1)[-1]}" if owner else node.name


def _cleaned(graph: fx.GraphModule) -> fx.GraphModule:
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


#: arithmetic that the graph keeps as it is; see operations.py
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
