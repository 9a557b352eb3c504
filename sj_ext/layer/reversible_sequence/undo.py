"""The sequence as one node of the autograd graph, undone block by block in its backward pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..temporal_reversible.randomness import Draws, Start
from ..temporal_reversible.replay import AutocastState
from ..temporal_reversible.stand_ins import foreign_leaves
from .part import Fired, Readers, recorded, replayed, run_from_rest, split, without_trace

__all__ = ["Parts", "run_reversibly"]

#: (F, G) of every block
Parts = list[tuple[nn.Module, nn.Module]]


@dataclass
class _Run:
    """How one F or G ran in the forward pass, so that it can run again alike."""

    part: nn.Module
    nodes: list[nn.Module]
    fired: list[Fired]
    start: Start


@dataclass
class _Call:
    """What a call of the sequence keeps besides tensors that autograd saves for it."""

    parts: Parts
    readers: Readers
    dim: int
    device: torch.device
    dtype: torch.dtype
    autocast: AutocastState
    parameters: list[nn.Parameter]
    runs: list[_Run] = field(default_factory=list)


def run_reversibly(parts: Parts, readers: Readers, x_seq: torch.Tensor, dim: int) -> torch.Tensor:
    """The blocks' output, which keeps nothing but itself and bits for the backward pass."""
    modules = dict.fromkeys(part for pair in parts for part in pair)
    parameters = dict.fromkeys(p for part in modules for p in part.parameters())
    autocast = AutocastState(x_seq.device.type)
    call = _Call(parts, readers, dim, x_seq.device, x_seq.dtype, autocast, list(parameters))
    return _Sequence.apply(call, x_seq, *parameters)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, x_seq: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        kept = _forward(call, x_seq)
        ctx.call = call
        ctx.save_for_backward(kept, *parameters)
        return kept if kept.dtype == x_seq.dtype else kept.to(x_seq.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, *values = ctx.saved_tensors
        into, found = _Undoing(ctx.call, values).backward(kept, grad)
        return None, into, *found


def _forward(call: _Call, x_seq: torch.Tensor) -> torch.Tensor:
    """All blocks, one after the other; fills ``call.runs``."""
    streams = split(x_seq, call.dim)
    draws = Draws(x_seq.device, alone=True)
    for pair in call.parts:
        for side, part in enumerate(pair):
            x = streams[1 - side].to(call.dtype)
            nodes = call.readers.of(part, x)
            run = functools.partial(run_from_rest, part, x)
            again = functools.partial(recorded, nodes, run)
            (y, fired), start = draws.run(id(part), again)
            call.runs.append(_Run(part, nodes, fired, start))
            streams[side] = streams[side] + y
    return torch.cat(streams, call.dim)


class _Undoing:
    """The blocks undone from the last to the first.

    Args:
        call: what the forward pass kept.
        values: of the parameters, as autograd saved them.
    """

    def __init__(self, call: _Call, values: Sequence[torch.Tensor]):
        self._call = call
        self._values = dict(zip(call.parameters, values, strict=True))
        self._found: dict[nn.Parameter, torch.Tensor] = {}

    def backward(
        self, kept: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """Gradients of the input and of the parameters."""
        call = self._call
        streams = list(kept.chunk(2, call.dim))
        grads = [g.to(kept.dtype) for g in grad.chunk(2, call.dim)]
        with call.autocast.again():
            for i, run in reversed(list(enumerate(call.runs))):
                side = i % 2
                y, into = self._undo(run, streams[1 - side].to(call.dtype), grads[side])
                streams[side] = streams[side] - y
                grads[1 - side] = grads[1 - side] + into
        into = torch.cat(grads, call.dim).to(call.dtype)
        return into, [self._found.get(p) for p in call.parameters]

    def _undo(
        self, run: _Run, x: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A part's output once more, and the gradient of its input; adds up its parameters'."""
        stand_ins = {
            p: self._values[p].detach().requires_grad_(p.requires_grad)
            for p in run.part.parameters()
        }
        named = {name: stand_ins[p] for name, p in run.part.named_parameters()}
        x = x.detach().requires_grad_()
        with without_trace(run.part, x.device, named, run.start), torch.enable_grad():
            y = replayed(run.nodes, run.fired, lambda: run_from_rest(run.part, x))
        learned = [p for p, leaf in stand_ins.items() if leaf.requires_grad]
        leaves = [stand_ins[p] for p in learned]
        _check_leaves(run.part, y, [x, *leaves])
        into, *own = torch.autograd.grad(y, [x, *leaves], grad.to(y.dtype), allow_unused=True)
        for p, g in zip(learned, own, strict=True):
            if g is not None:
                self._found[p] = self._found[p] + g if p in self._found else g
        return y.detach(), torch.zeros_like(x) if into is None else into


def _check_leaves(part: nn.Module, y: torch.Tensor, known: list[torch.Tensor]) -> None:
    foreign = foreign_leaves(y, known)
    if foreign:
        raise RuntimeError(
            f"blocks: a {type(part).__name__} depends on a tensor of shape "
            f"{list(foreign[0].shape)} that is no parameter of it and would get no gradient: make "
            f"it a parameter, or use memory='autograd'"
        )
