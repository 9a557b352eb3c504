r"""Coding by the distance of two spikes: the neuron, and how long a network of it takes.

A value is sent by two spikes. The first switches a synapse on, the second switches it off, and in
between the synapse adds its weight at every step; so the distance of the two is the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from .. import checks, host
from ..arguments import checked
from .neuron import StartingNode

__all__ = ["TwoSpikeNode", "latency", "window_of"]


@checked
class TwoSpikeNode(StartingNode):
    r"""Gathers its input for a window of ``T`` steps and sends it by two spikes in the next one.

    .. warning:: Experimental. The rule of the published neuron was not at hand: this is the
        smallest reading of its abstract.

    With the charge :math:`Q_k` of window :math:`k`,

    .. math::
        Q_k = u \theta + \sum_{t=1}^{T} X[k T + t], \qquad
        n_k = \mathrm{clip}(\lfloor Q_k / \theta \rfloor, 0, T), \qquad
        S[(k + 1) T + t] = [t \le n_k]

    The output is the state of the switch: 1 from the first spike to the second, which are the steps
    at which it changes. There are two of them in a window at most, whatever the value. A window
    begins from rest, so that how the input is spread over it does not matter; the first window is
    silent, and a network of :math:`L` layers in a row takes :math:`L T` steps to its first answer.

    Args:
        T: steps of a window.
        v_threshold: :math:`\theta`.
        v_init: :math:`u` in [0, 1): 0 rounds down, 1/2 rounds.
        step_mode: ``'s'`` or ``'m'``.
        surrogate_function: gradient of the switch, for training after the conversion.
        detach_reset: keep the counting down out of the gradient.
        backend: ``'torch'``.
        store_v_seq: keep the charges of all steps in ``v_seq``.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``, of any number of steps.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Source: Han and Roy, "Deep Spiking Neural Network: Energy Efficiency Through Time Based Coding",
    ECCV 2020 (temporal switch coding).
    """

    state_names = ("v", "held", "at")

    def __init__(
        self,
        T: int,
        v_threshold: float = 1.0,
        v_init: float = 0.0,
        step_mode: str = "s",
        *,
        surrogate_function: Callable[..., Any] = host.surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
        store_v_seq: bool = False,
    ):
        super().__init__(
            v_threshold=checks.number("v_threshold", v_threshold, above=0),
            v_reset=None,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        self.T = checks.integer("T", T, at_least=1)
        self.v_init = checks.number("v_init", v_init, at_least=0, below=1)
        self.register_memory("held", 0.0)
        self.register_memory("at", 0)

    def started(self, x: torch.Tensor, states: host.States) -> host.States:
        """The charge that a window begins with in place of the scalar that a reset leaves."""
        return (self._rest(x), torch.zeros_like(x), 0)

    def step(self, x: torch.Tensor, states: host.States) -> tuple[torch.Tensor, host.States]:
        """One step of ``x`` ``[N, *]``."""
        v, held, at = states
        spike = self.surrogate_function(held - self.v_threshold)
        held = held - self.v_threshold * (spike.detach() if self.detach_reset else spike)
        v = v + x
        if at + 1 < self.T:
            return spike, (v, held, at + 1)
        return spike, (self._rest(x), v, 0)

    def _rest(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.v_init * self.v_threshold)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, T={self.T}, v_init={self.v_init:.4g}"


@checked
def latency(snn: nn.Module) -> int:
    """Steps from rest until the output of a converted network is that of its whole depth.

    Args:
        snn: a converted network.

    Returns:
        ``T`` for each :class:`TwoSpikeNode` on the longest way to the output; 0 for a network of
        rates, whose every step counts.

    Raises:
        TypeError: ``snn`` is no module.
    """
    if not isinstance(checks.module("snn", snn), fx.GraphModule):
        return 0
    graph: Any = snn.graph
    steps: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = max((steps[source] for source in node.all_input_nodes), default=0)
        called = snn.get_submodule(str(node.target)) if node.op == "call_module" else None
        steps[node] = before + (called.T if isinstance(called, TwoSpikeNode) else 0)
    return max(steps.values(), default=0)


def window_of(snn: nn.Module) -> int:
    """Steps of a window of a network of :class:`TwoSpikeNode`; 1 for other networks."""
    return max((m.T for m in snn.modules() if isinstance(m, TwoSpikeNode)), default=1)
