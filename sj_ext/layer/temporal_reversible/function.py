"""All steps and levels as one autograd function, which holds records in place of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .dynamics import Call, roll_out
from .graphs import Graphs
from .needs import Needs
from .recorder import Options, Recorder
from .replay import AutocastState
from .undo import Undoing

__all__ = ["run_reversibly"]


def run_reversibly(
    call: Call,
    options: Options,
    inputs: Sequence[torch.Tensor],
    states: Sequence[torch.Tensor | None],
    decays: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """:func:`~.dynamics.roll_out` whose graph is one node that holds bits instead of activations.

    ``parameters`` are those of all modules of the call and of its surrogate, each once.
    """
    carried = [u for u in states if u is not None]
    sizes = (len(inputs), len(carried), len(decays), len(parameters))
    flat = (*inputs, *carried, *decays, *parameters)
    u_top, *final = _Undo.apply(call, options, sizes, *flat)
    return u_top, final


def _split(sizes: Sequence[int], values: Sequence[Any]) -> list[list[Any]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(values[start : start + size]))
        start += size
    return parts


class _Undo(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, options: Options, sizes: Sequence[int], *flat: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        inputs, carried, decays, parameters = _split(sizes, flat)
        needed = _split(sizes, ctx.needs_input_grad[3:])
        states = carried or [None] * call.num_levels
        state_needs = needed[1] or [False] * call.num_levels
        needs = Needs(call, needed[0], state_needs, needed[2], needed[3])

        ctx.set_materialize_grads(False)
        ctx.autocast = AutocastState(inputs[0].device.type)
        kept = [column[level] for column in call.modules for level in options.kept_levels]
        graphs = Graphs(kept, parameters)
        recorder = Recorder(call, options, needs, decays, inputs[0].device, graphs)
        with graphs.stand_ins.in_place(buffers=False):
            u_top, final = roll_out(call, inputs, states, decays, recorder)
        # Casts of weights that autocast made here know of no gradient. Releases of PyTorch that
        # cache them would hand them to layers that want one.
        torch.clear_autocast_cache()
        ctx.call, ctx.options, ctx.sizes, ctx.needs = call, options, sizes, needs
        ctx.counts = len(flat), len(recorder.tensors)
        ctx.save_for_backward(*flat, *recorder.tensors, *graphs.take_tensors())
        ctx.recorder, ctx.graphs = recorder, graphs
        ctx.parameters = parameters  # saved tensors need not come back as the same objects
        recorder.let_go()
        return u_top, *final

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_top: torch.Tensor | None, *grad_final: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        saved = _saved_tensors(ctx)
        flat, records = ctx.counts
        kept, of_graphs = saved[flat : flat + records], saved[flat + records :]
        undoing = Undoing(ctx, _split(ctx.sizes, saved[:flat]), kept)
        with ctx.graphs.with_tensors(of_graphs):
            return None, None, None, *undoing.run(grad_top, grad_final)


def _saved_tensors(ctx: Any) -> tuple[torch.Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(
            "TemporalReversible: backward through the same forward pass a second time, after its "
            "records were freed. Pass retain_graph=True to the first backward, or, if states were "
            "carried over from an earlier call, cut them with functional.detach_net or "
            "functional.reset_net"
        ) from error
