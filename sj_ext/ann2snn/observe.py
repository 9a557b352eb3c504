"""Running the trained network and the converted one, and looking at one place in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from .. import host
from ..observe import at_rest
from .site import SpikingSite

__all__ = ["mean_at", "single_steps", "sites", "watch_activations", "watch_steps"]

Watcher = Callable[[torch.Tensor], None]


class _Reached(Exception):
    """All that was asked for has been seen."""


def sites(snn: nn.Module) -> dict[str, SpikingSite]:
    """The spiking layers of a converted network by name, in the order of the network.

    Raises:
        ValueError: there is none.
    """
    found = {name: part for name, part in snn.named_modules() if isinstance(part, SpikingSite)}
    if isinstance(snn, fx.GraphModule):
        order = {str(node.target): i for i, node in enumerate(snn.graph.nodes)}
        found = dict(
            sorted(found.items(), key=lambda item: order.get(f"{item[0]}.if_node", len(order)))
        )
    if not found:
        raise ValueError(
            "snn has no spiking layer of a conversion: make it with ann2snn.convert, or hand a "
            "network that the host made to ann2snn.refine"
        )
    return found


@contextmanager
def single_steps(snn: nn.Module) -> Iterator[None]:
    """:func:`sj_ext.observe.at_rest` in step mode ``'s'``; afterwards everything as it was."""
    modes = {m: m.step_mode for m in snn.modules() if isinstance(m, host.base.StepModule)}
    try:
        with at_rest(snn):
            for module in modes:
                module.step_mode = "s"
            yield
    finally:
        for module, mode in modes.items():
            module.step_mode = mode


def watch_activations(
    ann: nn.Module, inputs: Iterable[torch.Tensor], watchers: dict[str, Watcher]
) -> None:
    """Run a network in evaluation and give the outputs of named modules to their watchers."""
    handles = [
        ann.get_submodule(name).register_forward_hook(
            lambda module, args, output, see=see: see(output.detach())
        )
        for name, see in watchers.items()
    ]
    try:
        with torch.no_grad():
            for x in inputs:
                ann(x)
    finally:
        for handle in handles:
            handle.remove()


def watch_steps(
    snn: nn.Module,
    x: torch.Tensor,
    steps: int,
    module: nn.Module,
    see: Callable[[int, Any, Any], None],
    encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Run ``steps`` steps from rest as far as ``module``; ``see(t, input, output)`` at each."""
    step = 0

    def look(_: nn.Module, args: Any, output: Any) -> None:
        see(step, args[0], output)
        raise _Reached

    handle = module.register_forward_hook(look)
    try:
        with single_steps(snn):
            for step in range(steps):  # noqa: B007
                try:
                    snn(x if encoder is None else encoder(x))
                except _Reached:
                    continue
    finally:
        handle.remove()


def mean_at(
    snn: nn.Module, x: torch.Tensor, steps: int, module: nn.Module, of: str = "output"
) -> torch.Tensor:
    """Mean over ``steps`` steps of what a module puts out (or takes in), ``[N, *]``."""
    total: list[torch.Tensor] = []

    def add(step: int, taken: torch.Tensor, given: torch.Tensor) -> None:
        value = given if of == "output" else taken
        if total:
            total[0] += value
        else:
            total.append(value.clone())

    watch_steps(snn, x, steps, module, add)
    return total[0] / steps
