"""SpikingJelly 2.x: explicit states, and kernels that the host chooses by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate

from .backend import HostsChoice as HostBackend
from .node import PureNode, States

__all__ = ["FunctionalNode", "HostBackend", "SurrogateFunction"]


class FunctionalNode(PureNode, neuron.BaseNode):
    """A stateful neuron of this package; a ``BaseNode`` of the host on both generations.

    A subclass registers its memories (``v`` is there already) and defines :meth:`step` and, if
    it can do better than a loop, :meth:`sequence`.
    """

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[..., Any] = surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ):
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq
        )
        self.backend = backend

    def materialize_states(
        self, inputs: tuple[torch.Tensor, ...], states: States, step_mode: str
    ) -> States:
        """The host's; a sequence of no steps leaves the states as they are."""
        if step_mode == "m" and not len(inputs[0]):
            return states
        found: States = super().materialize_states(inputs, states, step_mode)
        return found


class SurrogateFunction(surrogate.SurrogateFunctionBase):
    """A surrogate of this package, with one constant ``alpha``."""

    def __init__(self, alpha: float | torch.Tensor, spiking: bool = True):
        super().__init__(spiking=spiking, alpha=alpha)
