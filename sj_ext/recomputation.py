"""State under ``torch.utils.checkpoint``: a call that is computed again starts where it first did.

Checkpointing runs a function a second time during the backward pass. A neuron would then start from
the potential that the whole forward pass has left, and give wrong gradients without a word. Here

- a call within a checkpointed function notes the state before it, with the record that PyTorch
  keeps of that function;
- when the function runs again, its neurons start from what was noted, and what they write is kept
  apart, so that their real state stays as it is.

:mod:`sj_ext.surroundings` finds the record. A call that runs during a backward pass from a state
that nobody has noted raises.

A compiled network runs no Python, so within a checkpoint its neurons run outside the graph, as they
do without a compiler; its other layers stay compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch._compile import _disable_dynamo

from . import surroundings
from .surroundings import Notes, replaying

__all__ = ["Recomputable", "may_run_again", "outside_the_graph", "replaying", "state_of"]

#: stands for the module that the mixin is mixed into
_Mixin: Any = object

#: what a module holds besides its parameters and buffers: memories, and the potentials of all steps
_STATE = ("_memories", "v_seq", "_cut")


class _Noted(NamedTuple):
    """A tensor of a state, without its graph."""

    value: torch.Tensor
    requires_grad: bool
    version: int


def may_run_again() -> bool:
    """Whether a call may be, or belong to, a computation that autograd runs again; cheap."""
    if torch.compiler.is_compiling():
        return bool(surroundings.within_checkpoint)  # a compiler looks again at every call
    if torch._C._current_graph_task_id() != -1:  # within a backward pass
        return True
    if torch.is_grad_enabled():
        return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return not torch.is_inference_mode_enabled()


class Recomputable(_Mixin):
    """Mixin for a module with memories: checkpointing may run its calls and resets again."""

    #: the reentrant checkpoint that the state comes out of, without the graph that it should have
    _cut: int | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._cut is None and not may_run_again():
            return super().forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            return outside_the_graph(self, "forward", *args, **kwargs)
        with state_of(self):
            return super().forward(*args, **kwargs)

    def reset(self) -> None:
        if not may_run_again():
            super().reset()
        elif torch.compiler.is_compiling():
            outside_the_graph(self, "reset")
        else:
            with state_of(self, resetting=True):
                super().reset()
        self._cut = None

    def detach(self) -> None:
        if not may_run_again():
            super().detach()
        elif torch.compiler.is_compiling():
            outside_the_graph(self, "detach")
        else:
            with state_of(self, resetting=True):
                super().detach()
        self._cut = None


@_disable_dynamo  # torch.compiler.disable, without importing the compiler beforehand
def outside_the_graph(module: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of ``module`` as it is without a compiler.

    A network with memories that runs within ``torch.utils.checkpoint`` is compiled without
    ``fullgraph=True``: its neurons run outside the graph.
    """
    return getattr(module, method)(*args, **kwargs)


@contextlib.contextmanager
def state_of(module: Any, resetting: bool = False) -> Iterator[None]:
    """Run a call (or a reset) of ``module`` from the state that is right for it.

    Args:
        module: a module with memories; only they are exchanged.
        resetting: whether the state before does not matter, or its gradient.

    Raises:
        RuntimeError: the call is computed again and the state before it is not known, or was
            changed in place since; or it would carry a gradient across the border of a reentrant
            checkpoint, which cuts it.
    """
    first, again, border = surroundings.find()
    if again is None:
        if not resetting:
            _check_start(module, first, border)
        for notes in first:
            notes.setdefault(id(module), _noted(module))
        yield
        if border is not None and not resetting:
            module._cut = id(border)
        return
    attributes: dict[str, Any] = vars(module)
    real = {name: attributes[name] for name in _STATE if name in attributes}
    # a second backward pass through one graph computes it once more, from the beginning
    shadows = again.setdefault(("again", torch._C._current_graph_task_id()), {})
    attributes.update(shadows.get(id(module)) or _as_noted(module, again))
    try:
        for notes in first:
            notes.setdefault(id(module), _noted(module))
        yield
    finally:
        shadows[id(module)] = {name: attributes[name] for name in _STATE if name in attributes}
        for name in _STATE:
            attributes.pop(name, None)
        attributes.update(real)


def _check_start(module: Any, first: list[Notes], border: Notes | None) -> None:
    """Raise where a call that runs for the first time would lose a gradient or start wrongly."""
    within = None if border is None else id(border)
    crosses = border is not None or torch.is_grad_enabled()
    if module._cut not in (None, within) and crosses:
        _refuse_border(module)
    if border is not None and id(module) not in border:
        tensors = [v for v in module._memories.values() if isinstance(v, torch.Tensor)]
        if any(value.requires_grad for value in tensors):
            _refuse_border(module)
    if not first and not surroundings.replays() and torch._C._current_graph_task_id() != -1:
        _refuse_unknown(module)


def _noted(module: Any) -> dict[str, Any]:
    """The state of ``module`` now, without graphs."""
    return {
        name: _Noted(value.detach(), value.requires_grad, value._version)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in module._memories.items()
    }


def _as_noted(module: Any, notes: Notes) -> dict[str, Any]:
    """A state of its own for ``module``, from what was noted."""
    if id(module) not in notes:
        _refuse_unknown(module)
        return {"_memories": dict(module._memories)}
    memories = {}
    for name, value in notes[id(module)].items():
        if isinstance(value, _Noted):
            if value.value._version != value.version:
                raise RuntimeError(
                    f"{type(module).__name__}: its {name} was changed in place after the "
                    "checkpointed forward pass, so that this cannot be computed again: reset the "
                    "network after the backward pass, not before it"
                )
            value = value.value.detach().requires_grad_(value.requires_grad)
        memories[name] = value
    return {"_memories": memories}


def _refuse_border(module: Any) -> None:
    raise RuntimeError(
        f"the state of {type(module).__name__} would carry its gradient into or out of "
        "torch.utils.checkpoint(..., use_reentrant=True), which cuts it: use use_reentrant=False, "
        "run the whole sequence within one checkpointed call, or call functional.detach_net or "
        "functional.reset_net in between"
    )


def _refuse_unknown(module: Any) -> None:
    if not any(isinstance(value, torch.Tensor) for value in module._memories.values()):
        return  # at rest, as it was: the call starts where it would start
    raise RuntimeError(
        f"{type(module).__name__} runs again during a backward pass, and the state before its "
        "first run is not known: use torch.utils.checkpoint (either kind) or its wrappers for "
        "recomputation, or run the network from functional.reset_net within what is recomputed"
    )
