"""Looking at a network without leaving a trace in it.

:func:`at_rest` runs it in evaluation mode from reset and leaves it as it was; :func:`watching` sees
what its layers read and write. Both clean up after an exception too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from . import host

__all__ = ["at_rest", "watching"]

K = TypeVar("K")


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Within the context ``model`` is in evaluation mode, at reset, and computes no gradients.

    Afterwards every module has the memories, and the train or eval flag, that it had before. Call
    ``functional.reset_net(model)`` inside between two inputs. The size of a lazy parameter, which a
    first input fixes, stays fixed.

    Args:
        model: any network.
    """
    training = [(module, module.training) for module in model.modules()]
    held = [(module, _set_aside(module)) for module in model.modules()]
    try:
        model.eval()
        host.functional.reset_net(model)
        with torch.no_grad():
            yield
    finally:
        for module, state in held:
            vars(module).update(state)
        for module, flag in training:
            module.training = flag


def _set_aside(module: nn.Module) -> dict[str, Any]:
    """The state of a module, which gets another at reset in its place.

    The tensors themselves are kept: a host may reset a memory in place.
    """
    attributes = vars(module)
    state: dict[str, Any] = {
        name: attributes[name] for name in ("_memories", "v_seq") if name in attributes
    }
    if "_memories" in state:
        start = copy.deepcopy(attributes["_memories_rv"])
        attributes["_memories"] = {name: start.get(name) for name in state["_memories"]}
    return state


@contextlib.contextmanager
def watching(
    layers: Mapping[K, nn.Module] | Iterable[tuple[K, nn.Module]],
    hook: Callable[[K, nn.Module, torch.Tensor, torch.Tensor], object],
) -> Iterator[None]:
    """Within the context, ``hook(key, layer, x, y)`` is called whenever a layer has run.

    Args:
        layers: the layers by key, for example a name. A layer with two keys is seen twice.
        hook: gets the key, the layer, its first input and its output; what it returns is ignored.
    """

    def look(key: K) -> Callable[..., None]:
        def call(layer: nn.Module, args: Any, kwargs: Any, y: torch.Tensor) -> None:
            hook(key, layer, args[0] if args else next(iter(kwargs.values())), y)

        return call

    pairs = layers.items() if isinstance(layers, Mapping) else layers
    with contextlib.ExitStack() as handles:
        for key, layer in pairs:
            handle = layer.register_forward_hook(look(key), with_kwargs=True)
            handles.callback(handle.remove)
        yield
