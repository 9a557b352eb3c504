"""Running one F or G: from rest, with its spikes recorded, and again with the recorded ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# private to PyTorch, whose functional_call is made of it
from torch.nn.utils.stateless import _reparametrize_module as swapped_tensors

from ... import host
from ...ops.layouts import Layout
from ...recomputation import replaying
from ..temporal_reversible.randomness import RandomState, Start

__all__ = ["Fired", "Readers", "recorded", "replayed", "run_from_rest", "split", "without_trace"]


def split(x_seq: torch.Tensor, dim: int) -> list[torch.Tensor]:
    """The two streams; added up in half precision, they could not be taken apart again."""
    half = x_seq.dtype in (torch.float16, torch.bfloat16)
    return [stream.float() if half else stream for stream in x_seq.chunk(2, dim)]


def run_from_rest(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A part's output on a whole sequence; its neurons start and end at rest."""
    host.functional.reset_net(part)
    y = part(x)
    host.functional.reset_net(part)
    if y.shape != x.shape:
        raise ValueError(
            f"blocks: a {type(part).__name__} must keep the shape of its stream, but turned "
            f"{list(x.shape)} into {list(y.shape)}"
        )
    return y


@dataclass(frozen=True)
class Fired:
    """What one neuron fired in one call: bits with their layout, or values that are no spikes."""

    held: torch.Tensor
    layout: Layout | None
    dtype: torch.dtype

    @classmethod
    def of(cls, y: torch.Tensor) -> Fired:
        mask = y != 0
        if not torch.equal(mask.to(y.dtype), y):
            return cls(y.detach(), None, y.dtype)
        return cls(Layout.like(y).pack(mask), Layout.like(y), y.dtype)

    def again(self) -> torch.Tensor:
        return self.held if self.layout is None else self.layout.unpack(self.held).to(self.dtype)


class Readers:
    """Neurons of each part whose input depends on its stream by way of no other neuron.

    Only they can see that a stream was rebuilt: what the others read follows from spikes. A part is
    looked at in a run of its own, once, and again where its neurons were exchanged since.
    """

    def __init__(self) -> None:
        self._found: dict[nn.Module, tuple[list[nn.Module], list[nn.Module]]] = {}

    def of(self, part: nn.Module, x: torch.Tensor) -> list[nn.Module]:
        """The part's neurons that read ``x`` directly."""
        neurons = [m for m in part.modules() if isinstance(m, host.neuron.BaseNode)]
        before, found = self._found.get(part, ([], []))
        if before != neurons:
            found = _readers(part, neurons, x)
            self._found[part] = neurons, found
        return found


def _readers(part: nn.Module, neurons: list[nn.Module], x: torch.Tensor) -> list[nn.Module]:
    leaf, found = x.detach().requires_grad_(), []

    def look(node: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        if _depends(inputs[0], leaf):
            found.append(node)
        return output.detach()

    with without_trace(part, x.device), torch.enable_grad(), _seen(neurons, look):
        run_from_rest(part, leaf)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def without_trace(
    part: nn.Module,
    device: torch.device,
    parameters: Mapping[str, torch.Tensor] | None = None,
    start: Start = None,
) -> Iterator[None]:
    """Within the context a part has copies for buffers, and random numbers draw from ``start``.

    Args:
        part: an F or G.
        device: where it runs.
        parameters: what stands for its parameters, by name; by default they do themselves.
        start: of the random numbers; None for the present.
    """
    tensors = {name: buffer.clone() for name, buffer in part.named_buffers()}
    random = RandomState(device)
    with (
        replaying(),
        random.started_from(random.get() if start is None else start),
        swapped_tensors(
            part, {**tensors, **(parameters or {})}, tie_weights=True, stack_weights=True
        ),
    ):
        yield


def recorded(
    nodes: list[nn.Module], run: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, list[Fired]]:
    """The result of ``run`` and what the nodes fired in it, in the order of their calls."""
    fired: list[Fired] = []

    def note(node: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        fired.append(Fired.of(output))

    with _seen(nodes, note):
        return run(), fired


def replayed(
    nodes: list[nn.Module], fired: list[Fired], run: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """The result of ``run`` where the nodes fire as they did; gradients go through what they do."""
    left = iter(fired)

    def put(node: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return _Replaced.apply(output, next(left).again())

    with _seen(nodes, put):
        return run()


class _Replaced(torch.autograd.Function):
    """Another value, whose gradient is that of the one that it replaces."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


@contextlib.contextmanager
def _seen(nodes: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Within the context, what the hook returns for an output, if anything, stands in its place."""
    with contextlib.ExitStack() as handles:
        for node in nodes:
            handles.callback(node.register_forward_hook(hook).remove)
        yield


def _depends(x: torch.Tensor, leaf: torch.Tensor) -> bool:
    """Whether the graph behind ``x`` reaches ``leaf``."""
    if x is leaf:
        return True
    stack, seen = [x.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is leaf:
            return True
        stack.extend(parent for parent, _ in node.next_functions)
    return False
