"""Exchanging the activations of a network that is to be trained before its conversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from .. import checks
from ..arguments import checked, renamed
from .graph import activation_of, free_name, modules_called, own_call, put_submodule, trace

__all__ = ["Replacements", "replace_activations"]


@dataclass
class Replacements:
    """What :func:`replace_activations` exchanged; ``len`` counts it."""

    #: names of modules that were exchanged
    modules: list[str] = field(default_factory=list)
    #: names of the modules that took the place of calls, such as ``F.relu(x)``
    calls: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.modules) + len(self.calls)

    def __str__(self) -> str:
        return (
            f"{len(self)} activations replaced: {len(self.modules)} modules "
            f"({', '.join(self.modules) or '-'}), {len(self.calls)} calls "
            f"({', '.join(self.calls) or '-'})"
        )


@renamed(net="model")
@checked
def replace_activations(
    model: nn.Module,
    kinds: type | tuple[type, ...],
    factory: Callable[[], nn.Module],
    *,
    calls: bool = True,
) -> Replacements:
    """Exchange activations of a network in place: modules, and calls such as ``F.relu``.

    Each place in the network gets a module of its own, also where one module or none stood in
    several. Where that needs another ``forward``, because there are calls or shared modules,
    ``model`` becomes its own ``torch.fx.GraphModule``, with the names of its parameters as they
    were.

    Args:
        model: the network.
        kinds: activation classes, such as ``nn.ReLU``; a call counts as the class that does the
            same (``F.relu6`` as ``nn.ReLU6``, ``clamp(min=0)`` as ``nn.ReLU``).
        factory: makes a new activation, such as ``lambda: QuantizedClip.qcfs(8)``.
        calls: whether calls are looked for, which traces the network; ``False`` exchanges modules
            only, and leaves shared ones shared.

    Returns:
        What was exchanged.

    Raises:
        TypeError: ``kinds`` are no module classes, or ``factory`` makes no module.
        ValueError: nothing to exchange was found, or the network cannot be traced.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds):
        raise TypeError(f"kinds must be module classes, got {kinds!r}")
    if not isinstance(checks.function("factory", factory)(), nn.Module):
        raise TypeError(f"factory must make a module, got {factory!r}")
    found = _in_graph(model, kinds, factory) if calls else _in_modules(model, kinds, factory)
    if not found:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"model has no {names} to replace, neither as a module nor as a call")
    return found


def _in_modules(
    net: nn.Module, kinds: tuple[type, ...], factory: Callable[[], nn.Module]
) -> Replacements:
    found, made = Replacements(), dict[nn.Module, nn.Module]()
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if name and type(module) in kinds:
            made.setdefault(module, _like(net, factory()))
            _put(net, name, made[module])
            found.modules.append(name)
    return found


def _in_graph(
    net: nn.Module, kinds: tuple[type, ...], factory: Callable[[], nn.Module]
) -> Replacements:
    graph = trace(net)
    uses: dict[str, list[fx.Node]] = {}
    for node, module in modules_called(graph):
        if type(module) in kinds:
            uses.setdefault(str(node.target), []).append(node)
    functional = [node for node in graph.graph.nodes if type(activation_of(node)) in kinds]
    if not functional and all(len(nodes) == 1 for nodes in uses.values()):
        return _in_modules(net, kinds, factory)
    found = Replacements()
    for name, nodes in uses.items():
        for i, node in enumerate(nodes):
            own = name if i == 0 else free_name(graph, name)
            put_submodule(graph, own, _like(net, factory()))
            node.target = own
            found.modules.append(own)
    for node in functional:
        name = free_name(graph, node.name)
        own_call(graph, node, _like(net, factory()), name)
        found.calls.append(name)
    _become(net, graph)
    return found


def _become(net: nn.Module, graph: fx.GraphModule) -> None:
    """Make a module the graph module that was traced from it."""
    graph.graph.lint()
    graph.recompile()
    if net is graph:
        return
    training = net.training
    net.__class__ = type(graph)
    net.__dict__.clear()
    net.__dict__.update(graph.__dict__)
    net.training = training


def _like(net: nn.Module, module: nn.Module) -> nn.Module:
    tensor = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
    return module.to(tensor.device, tensor.dtype).train(net.training)


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    owner = net.get_submodule(parent) if parent else net
    owner._modules[child] = module
