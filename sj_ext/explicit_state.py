"""A network whose state goes in and comes out with the tensors, as an exported graph needs it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from . import checks, host
from .layer import TemporalReversible
from .observe import at_rest

__all__ = ["ExplicitState"]


class ExplicitState(nn.Module):
    r"""``model`` as a function of its inputs and its state: :math:`(x, s) \mapsto (y, s')`.

    Called with the inputs alone it starts from rest. Called with the inputs and the state it goes
    on from there. Either way it returns the output and the state afterwards, and leaves the network
    itself as it was. So a stream is exported as two graphs::

        net = sj_ext.ExplicitState(net, frame)
        first = torch.onnx.export(net, (frame,), dynamo=True)
        y, *state = net(frame)
        next = torch.onnx.export(net, (frame, *state), dynamo=True)

    Args:
        model: a network of neurons of the host or of this package, in either step mode.
        *example_inputs: what it is called with; once, here, to find out what its state is.

    Shapes:
        Those of ``model``; each state as the neuron holds it, mostly ``[N, *]``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it holds no state after the example; a cell in it has levels or decays of its
            own for each step, so that its steps are different functions; a call has neither all
            tensors of the state nor none; or a state does not have the shape that the input asks
            for.
    """

    def __init__(self, model: nn.Module, *example_inputs: torch.Tensor):
        super().__init__()
        self.model: nn.Module = checks.module("model", model)
        self._num_inputs = len(example_inputs)
        with at_rest(model):
            model(*example_inputs)
            self._places = [
                (path, name)
                for path, module in model.named_modules()
                for name, value in getattr(module, "_memories", {}).items()
                if isinstance(value, torch.Tensor) and name != "v_seq"
            ]
        if not self._places:
            raise ValueError("model holds no state after the example: export it as it is")
        for path, _ in self._places:
            cell = model.get_submodule(path)
            if isinstance(cell, TemporalReversible) and (cell.columns or cell.decay_per_step):
                raise ValueError(
                    f"model: the cell {path or 'itself'} has levels or decays of its own for each "
                    "step, so no one graph goes on from a state; export whole sequences"
                )

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the tensors of the state, in order, such as ``'1.v'``."""
        return tuple(".".join(filter(None, place)) for place in self._places)

    def forward(self, *inputs_and_state: torch.Tensor) -> tuple[Any, ...]:
        """The output and the state after it."""
        inputs = inputs_and_state[: self._num_inputs]
        states = inputs_and_state[self._num_inputs :]
        if len(inputs) < self._num_inputs or len(states) not in (0, len(self._places)):
            raise ValueError(
                f"{self._num_inputs} inputs and none or all of {len(self._places)} states "
                f"{self.state_names} are needed, got {len(inputs_and_state)} tensors"
            )
        with _fresh_memories(self.model):
            holders: list[Any] = [
                (self.model.get_submodule(path), name) for path, name in self._places
            ]
            for (module, name), state in zip(holders, states, strict=False):
                module._memories[name] = state
            y = self.model(*inputs)
            after = [module._memories[name] for module, name in holders]
        for name, before, state in zip(self.state_names, states, after, strict=False):
            if before.shape != state.shape:  # 2.x starts afresh from another shape, in silence
                raise ValueError(
                    f"the state {name} has shape {list(before.shape)}, but the input asks for "
                    f"{list(state.shape)}"
                )
        return (*(y if isinstance(y, tuple) else (y,)), *after)


@contextlib.contextmanager
def _fresh_memories(model: nn.Module) -> Iterator[None]:
    """Memories as after a reset within the context, as they were afterwards."""
    holders: list[Any] = [
        module for module in model.modules() if isinstance(module, host.base.MemoryModule)
    ]
    held = [holder._memories for holder in holders]
    try:
        for holder in holders:
            rest = holder._memories_rv
            holder._memories = {name: copy.deepcopy(rest.get(name)) for name in holder._memories}
        yield
    finally:
        for holder, memories in zip(holders, held, strict=True):
            holder._memories = memories
