"""Which neurons carry the gradient through time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .. import host
from ..arguments import checked, renamed

__all__ = ["gradient_similarity"]


@renamed(network="model")
@checked
def gradient_similarity(
    model: nn.Module,
    loss: Callable[[], torch.Tensor],
    dropped: Iterable[str | nn.Module] | None = None,
    *,
    kept: Iterable[str | nn.Module] | None = None,
    parameters: Iterable[torch.Tensor] | None = None,
) -> float | dict[str, float]:
    r"""Cosine similarity of the full gradient with one whose way through time is cut.

    Let g be the gradient of the loss with backpropagation through time, and g' the one in which the
    chosen neurons hand their potential to the next step without a gradient: there
    :math:`\partial u[t] / \partial u[t-1]` counts as 0, while the forward pass and the gradient
    through the layers stay as they are. The result is

    .. math::
        \frac{\langle g, g' \rangle}{\lVert g \rVert \lVert g' \rVert}.

    Dropped at neurons that matter little, the gradient keeps its direction (near 1); a neuron whose
    dropping turns it (towards 0) is a key neuron.

    The network is left as it was, except that it is reset: parameters' ``.grad``, buffers and the
    random number generators do not change. Every run starts from a reset and from the same random
    numbers, so dropout is the same in all of them.

    Args:
        model: any network of SpikingJelly modules, in either step mode.
        loss: runs the network and returns a scalar, for example
            ``lambda: F.cross_entropy(model(x_seq).mean(0), target)``.
        dropped: the neurons at which the temporal gradient is dropped, as modules or as names from
            ``model.named_modules()``; any module with memories of its own will do.
        kept: instead, the only neurons at which it is kept; it is dropped at all others.
        parameters: what the gradient is taken of, by default all parameters that require one.

    Returns:
        With ``dropped`` or ``kept``, the similarity. With neither, a dictionary with the similarity
        for each neuron dropped by itself, by name. NaN where a gradient is 0.

    Raises:
        TypeError: ``model`` is no module, ``loss`` is not callable, or a neuron is neither a name
            nor a module.
        ValueError: both ``dropped`` and ``kept`` are given; a neuron is not part of the network,
            has no memory or does not run single steps; the network has no neurons; the loss is not
            a scalar that requires a gradient.

    Source: the key neurons of "High-Performance Temporal Reversible Spiking Neural Networks with
    O(L) Training Memory and O(1) Inference Cost", ICML 2024, arXiv 2405.16466.
    """
    if dropped is not None and kept is not None:
        raise ValueError("dropped and kept exclude each other: give one of them")
    chosen = list(model.parameters() if parameters is None else parameters)
    chosen = [p for p in chosen if p.requires_grad]
    if not chosen:
        raise ValueError("parameters must have one that requires a gradient")
    nodes = _stateful_nodes(model)
    gradient = functools.partial(_gradient, model, loss, chosen)
    if dropped is None and kept is None:
        if not nodes:
            raise ValueError("model must have at least one neuron with a memory, got none")
        with _left_as_it_was(model) as again:
            again()
            full = gradient()
            similarities = {}
            for name, node in nodes.items():
                again()
                similarities[name] = _cosine(full, gradient([node]))
        return similarities
    if dropped is not None:
        cut = _resolve("dropped", model, dropped)
    else:
        stay = {id(node) for node in _resolve("kept", model, kept or ())}
        cut = [node for node in nodes.values() if id(node) not in stay]
    with _left_as_it_was(model) as again:
        again()
        full = gradient()
        again()
        return _cosine(full, gradient(cut))


def _stateful_nodes(network: nn.Module) -> dict[str, nn.Module]:
    """The neurons that can be cut, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, host.neuron.BaseNode)
        and module._memories
        and "s" in module.supported_step_mode()
    }


def _resolve(
    argument: str, network: nn.Module, given: Iterable[str | nn.Module]
) -> list[nn.Module]:
    modules = dict(network.named_modules())
    members = {id(module) for module in modules.values()}
    nodes = []
    if isinstance(given, str | nn.Module):
        raise TypeError(f"{argument} must be several neurons (a list), got {type(given).__name__}")
    for node in given:
        if not isinstance(node, str | nn.Module):
            raise TypeError(f"{argument} must hold names or modules, got {node!r}")
        if isinstance(node, str) and node not in modules:
            raise ValueError(
                f"{argument} must name modules of the network, got {node!r}; its neurons are "
                f"{list(_stateful_nodes(network))}"
            )
        module = modules[node] if isinstance(node, str) else node
        if id(module) not in members:
            raise ValueError(f"{argument} must be part of the network, got {node!r}")
        if not isinstance(module, host.base.MemoryModule) or not module._memories:
            raise ValueError(f"{argument} must be modules with memories, got {node!r}")
        if "s" not in module.supported_step_mode():
            raise ValueError(
                f"{argument} must be modules that run single steps, got {node!r}: it carries "
                "nothing from step to step that could be cut"
            )
        nodes.append(module)
    return nodes


def _gradient(
    network: nn.Module,
    loss: Callable[[], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    cut: Sequence[nn.Module] = (),
) -> torch.Tensor:
    """The whole gradient as one vector in float64."""
    host.functional.reset_net(network)
    with torch.enable_grad(), contextlib.ExitStack() as stack:
        for node in cut:
            stack.enter_context(_temporal_gradient_dropped(node))
        value = loss()
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            what = (
                value
                if not isinstance(value, torch.Tensor)
                else (f"shape {list(value.shape)}, requires_grad={value.requires_grad}")
            )
            raise ValueError(f"loss must return a scalar that requires a gradient, got {what}")
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
    host.functional.reset_net(network)
    flat = [
        (torch.zeros_like(p) if g is None else g).double().flatten()
        for g, p in zip(grads, parameters, strict=True)
    ]
    return torch.cat(flat)


def _cosine(full: torch.Tensor, other: torch.Tensor) -> float:
    norms = float(full.norm() * other.norm())
    if norms == 0 or not math.isfinite(norms):
        return math.nan
    return float(full @ other) / norms


@contextlib.contextmanager
def _temporal_gradient_dropped(node: Any) -> Iterator[None]:
    """While this is open, a node's memories reach each step without their gradient.

    A multi-step forward runs as single steps, on the host's Torch backend: fused kernels have no
    place between steps to cut at.
    """
    own = node.__dict__.get("forward")
    forward = node.forward

    def one_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        for name, value in node._memories.items():
            if isinstance(value, torch.Tensor):
                # Not in place, as the host's detach(): the full gradient may still need the graph.
                node._memories[name] = value.detach()
        return forward(*args, **kwargs)

    def cut_forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if node.step_mode == "s":
            return one_step(x, *args, **kwargs)
        with _single_steps_on_torch(node):
            outputs, potentials = [], []
            for x_t in x:
                outputs.append(one_step(x_t, *args, **kwargs))
                if getattr(node, "store_v_seq", False):
                    potentials.append(node.v)
        if potentials:
            node.v_seq = torch.stack(potentials)
        return torch.stack(outputs)

    node.forward = cut_forward
    try:
        yield
    finally:
        if own is None:
            del node.forward
        else:
            node.forward = own


@contextlib.contextmanager
def _single_steps_on_torch(node: Any) -> Iterator[None]:
    backend = getattr(node, "backend", None)
    if backend not in (None, "torch"):
        node.backend = "torch"
    node.step_mode = "s"
    try:
        yield
    finally:
        node.step_mode = "m"
        if backend not in (None, "torch"):
            node.backend = backend


@contextlib.contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Restores buffers and random numbers, at the end and whenever the given function is called."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        random_cpu = torch.get_rng_state()
        random_cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

        def again() -> None:
            torch.set_rng_state(random_cpu)
            for device, state in random_cuda.items():
                torch.cuda.set_rng_state(state, device)
            for buffer, value in buffers:
                buffer.data.copy_(value)

        try:
            yield again
        finally:
            again()
            host.functional.reset_net(network)
