"""What a neuron of this package defines, written once for both generations of the host."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..recomputation import Recomputable, may_run_again, outside_the_graph, state_of
from .backend import BackendContract

__all__ = ["PureNode", "States"]

#: memories of a neuron, in the order in which they are registered
States = tuple[Any, ...]


class PureNode(Recomputable, BackendContract):
    """What a neuron of this package defines: pure functions over explicit states."""

    #: NIRTorch looks for this: what NIR has no node for is named, and not traced into
    _is_leaf_module = True

    #: names of the memories, in the order of the ``states`` tuples
    state_names: tuple[str, ...] = ("v",)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The backends that this node has in its present step mode."""
        return ("torch",)

    def step(
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """One step: ``x`` ``[N, *]`` and the states before it to the spikes and states after."""
        raise NotImplementedError(f"{type(self).__name__} must define step()")

    def sequence(
        self, x_seq: torch.Tensor, states: tuple[torch.Tensor, ...], store_v_seq: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
        """All steps of ``x_seq`` ``[T, N, *]``: spikes, states after, potentials if asked for."""
        spikes, potentials = [], []
        for x in x_seq:
            spike, states = self.step(x, states)
            spikes.append(spike)
            if store_v_seq:
                potentials.append(states[0])
        if not spikes:  # no step: no spikes, and the states as they were
            return torch.empty_like(x_seq), states, x_seq.new_empty(0) if store_v_seq else None
        return torch.stack(spikes), states, torch.stack(potentials) if store_v_seq else None

    def _states(self, inputs: tuple[torch.Tensor, ...], step_mode: str) -> States:
        held = tuple(self._memories[name] for name in self.state_names)
        return self.materialize_states(inputs, held, step_mode)

    def _hold(self, states: States) -> None:
        for name, value in zip(self.state_names, states, strict=True):
            self._memories[name] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        checks.floating(f"the input of {type(self).__name__}", x)
        run = self.single_step_forward if self.step_mode == "s" else self.multi_step_forward
        if self._cut is None and not may_run_again():
            return run(x)
        if torch.compiler.is_compiling():
            spikes: torch.Tensor = outside_the_graph(self, "forward", x)
            return spikes
        with state_of(self):
            return run(x)

    def single_step_forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_backend(x)
        spike, states = self.step(x, self._states((x,), "s"))
        self._hold(states)
        return spike

    def multi_step_forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        if not x_seq.dim():
            raise ValueError("the input must be [T, N, *] in step mode 'm', got shape []")
        self.check_backend(x_seq)
        spike_seq, states, v_seq = self.sequence(
            x_seq, self._states((x_seq,), "m"), self.store_v_seq
        )
        self._hold(states)
        if self.store_v_seq:
            self.v_seq = v_seq
        return spike_seq

    def single_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], States]:
        spike, states = self.step(inputs[0], states)
        return (spike,), states

    def multi_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], States]:
        spike_seq, states, _ = self.sequence(inputs[0], states, False)
        return (spike_seq,), states
