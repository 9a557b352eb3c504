r"""The backward pass over all steps and levels, which undoes them one by one.

With G_l[t] the gradient of the loss with respect to u_l[t] over all paths, step t of level l is
undone by

1. G_l[t] = (gradients of the outputs) + surrogate'(u_l[t]) * (gradient of s_l[t]) + a_l G_l[t+1];
2. running f = F_l(s_{l-1}[t], s_{l+1}[t-1]) again on the recorded spikes, and pushing G_l[t]
   through it to the spikes and the parameters; a level whose graph was kept is not run again;
3. the decay's gradient. Where a_l is the same at every step, sum_t G[t] u[t-1] = sum_k f[k] H[k]
   with H[k] = G[k+1] + a H[k+1], which needs no potential. Otherwise u[t-1] is rebuilt.

Levels go from the top to the bottom within a step: then the gradient of s_l[t], which comes from
level l + 1 at t and level l - 1 at t + 1, is complete when level l is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .dynamics import Call, joined, split
from .graphs import Graph, Graphs, foreign_parameter
from .needs import Needs
from .recorder import Options, Recorder
from .replay import AutocastState, Replay
from .stand_ins import StandIns, foreign_leaves

__all__ = ["Undoing"]


@dataclass
class LevelState:
    """Where one level stands while the call is undone."""

    #: the potential after the step that comes next, None where it is not known
    u: torch.Tensor | None = None
    #: G of the step that was undone last
    grad_u: torch.Tensor | None = None
    #: H of the step that comes next, of a decay that is shared over time
    h: torch.Tensor | None = None
    #: gradient of the spikes of the step that comes next, as far as it has arrived
    grad_spikes: torch.Tensor | None = None

    def add_grad_spikes(self, grad: torch.Tensor | None) -> None:
        if grad is not None:
            self.grad_spikes = grad if self.grad_spikes is None else self.grad_spikes + grad


class Undoing:
    """The state of one backward pass."""

    def __init__(self, ctx: Any, groups: list[list[torch.Tensor]], kept: Sequence[torch.Tensor]):
        self.call: Call = ctx.call
        self.needs: Needs = ctx.needs
        self.recorder: Recorder = ctx.recorder
        self.options: Options = ctx.options
        self.autocast: AutocastState = ctx.autocast
        self.inputs, carried, self.decays, self.parameters = groups
        self.states: list[torch.Tensor | None] = list(carried) or [None] * self.call.num_levels
        self.kept = kept
        everything = [module for column in self.call.modules for module in column]
        if isinstance(self.call.surrogate_function, torch.nn.Module):
            everything.append(self.call.surrogate_function)
        # ctx.parameters are those that the modules have, whose values ``parameters`` are
        self.stand_ins = StandIns(everything, ctx.parameters, self.parameters)
        self.graphs: Graphs = ctx.graphs
        # private to PyTorch: whether this pass is to leave the graph as it is
        self.again: bool = torch._C._autograd._get_current_graph_task_keep_graph()
        self.replay = Replay(self.recorder, kept, self.stand_ins)
        self.levels = [LevelState() for _ in range(self.call.num_levels)]
        self.grad_inputs: list[torch.Tensor | None] = [None] * len(self.inputs)
        self.grad_decays = _Sums(len(self.decays))
        self.grad_parameters = _Sums(len(self.parameters))
        self.checked: set[torch.nn.Module] = set()

    def run(
        self, grad_top: torch.Tensor | None, grad_final: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """Gradients of inputs, states, decays and parameters."""
        call = self.call
        self.grad_top, self.grad_final = grad_top, grad_final
        with self.stand_ins.in_place(), self.autocast.again():
            for span in reversed(call.spans):
                for level in reversed(range(call.num_levels)):
                    if self.needs.of(span, level):
                        self._undo(span, level)
            grad_states = [self._before_the_call(level) for level in range(call.num_levels)]
        self.replay.check(self.options.replay_tolerance)
        if self.states[0] is None:
            grad_states = []
        return [
            *self.grad_inputs,
            *grad_states,
            *self.grad_decays.like(self.decays),
            *self.grad_parameters.like(self.parameters),
        ]

    def _undo(self, span: range, level: int) -> None:
        state = self.levels[level]
        arriving = self._arriving(span, level)
        silent = state.grad_u is None and state.grad_spikes is None
        known = state.u is not None or self.recorder.trace(span, level).potentials
        if silent and not any(arriving) and not known:
            return
        kept = self.recorder.keeps_graph(level)
        outputs: Sequence[torch.Tensor | None] = [None] * len(span)
        if not kept:
            below, above = self._sources(span, level)
            f = self.replay.run(span, level, below, above)
            outputs = split(f.detach(), span, level)
        after, before = self._potentials(span, level, outputs)
        grads = self._grads_u(span, level, arriving, after)
        if grads is None:
            return
        if kept:
            self._push_kept(span, level, joined(grads))
        else:
            self._push(span, level, f, below, above, joined(grads))
            del f, below, above
        for t, output, u, grad in reversed(list(zip(span, outputs, before, grads, strict=True))):
            self._grad_decay(t, level, output, u, grad)
        state.grad_u = grads[0]

    def _arriving(self, span: range, level: int) -> list[list[torch.Tensor]]:
        """The gradients of the outputs that belong to each step's potential."""
        arriving: list[list[torch.Tensor]] = [[] for _ in span]
        final = self.grad_final[level]
        if span[-1] == self.call.num_steps - 1 and final is not None:
            arriving[-1].append(final)
        if level == self.call.num_levels - 1 and self.grad_top is not None:
            for t, gradients in zip(span, arriving, strict=True):
                gradients.append(self.grad_top[t])
        return arriving

    def _potentials(
        self, span: range, level: int, outputs: Sequence[torch.Tensor | None]
    ) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
        """u[t] and u[t-1] for the steps t of a span, None where they are not known."""
        state = self.levels[level]
        after: list[torch.Tensor | None] = []
        before: list[torch.Tensor | None] = []
        for t, f in reversed(list(zip(span, outputs, strict=True))):
            u = self._kept_potential(t, level)
            u = state.u if u is None else u
            after.insert(0, u)
            earlier = self.states[level] if t == 0 else self._kept_potential(t - 1, level)
            if t and earlier is None and u is not None and f is not None:
                earlier = (u - f).div_(self.decays[self.call.decay(t, level)])
            before.insert(0, earlier)
            state.u = earlier
        return after, before

    def _kept_potential(self, t: int, level: int) -> torch.Tensor | None:
        place = self.recorder.potential(t, level)
        return None if place is None else self.kept[place]

    def _grads_u(
        self,
        span: range,
        level: int,
        arriving: list[list[torch.Tensor]],
        after: list[torch.Tensor | None],
    ) -> list[torch.Tensor] | None:
        """G[t] for the steps t of a span, None where no gradient arrives at any."""
        state = self.levels[level]
        through: Sequence[torch.Tensor | None] = [None] * len(span)
        spikes, state.grad_spikes = state.grad_spikes, None
        if spikes is not None:
            known = [u for u in after if u is not None]
            u = joined(known) if len(known) == len(after) else None
            through = split(self._through_surrogate(span, level, spikes, u), span)
        grads: list[torch.Tensor | None] = [None] * len(span)
        later = state.grad_u
        for i in reversed(range(len(span))):
            grad = through[i]
            for g in arriving[i]:
                grad = g if grad is None else grad + g
            if later is not None:
                a = self.decays[self.call.decay(span[i] + 1, level)]
                grad = a * later if grad is None else torch.addcmul(grad, a, later)
            grads[i] = later = grad
        if grads[0] is None:  # a gradient at any step reaches the first one
            return None
        return [torch.zeros_like(grads[0]) if g is None else g for g in grads]

    def _through_surrogate(
        self, span: range | None, level: int, grad: torch.Tensor, u: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradient with respect to the potentials from the one with respect to spikes."""
        window = self.recorder.window
        trace = None if span is None else self.recorder.trace(span, level)
        if window is not None and trace is not None and trace.window is not None:
            assert trace.layout is not None  # set wherever a window is
            packed = self.kept[trace.window]
            return trace.layout.restored(window.apply(packed, trace.layout.ordered(grad)))
        assert u is not None  # rebuilt, or kept, wherever the window is not on record
        indices = self._surrogate_parameters()
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            leaves = [u, *(self.stand_ins.leaves[i] for i in indices)]
            grad, *others = torch.autograd.grad(self.call.fire(u), leaves, grad, allow_unused=True)
        for index, g in zip(indices, others, strict=True):
            self.grad_parameters.add(index, g)
        if grad is None:
            return torch.zeros_like(u)
        # What is not finite cannot be run backwards: the potentials before it are unknown, and a
        # window that looks at them would call their gradient 0.
        return torch.where(u.isfinite(), grad, torch.nan)

    def _surrogate_parameters(self) -> list[int]:
        function = self.call.surrogate_function
        return self.stand_ins.of(function) if isinstance(function, torch.nn.Module) else []

    def _sources(self, span: range, level: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The two inputs of F_level over a span, as leaves that want a gradient where needed."""
        call = self.call
        if level:
            fired = self._spikes(span, level - 1)
            assert fired is not None  # only before the call there may be no spikes
            below = fired
        else:
            below = call.input_of(self.inputs, span).detach()
        below.requires_grad_(self.needs.below(span, level))
        above = None
        if call.feedback and level + 1 < call.num_levels:
            above = self._spikes(call.before(span), level + 1)
            if above is not None:
                above.requires_grad_(self.needs.above(span, level))
        return below, above

    def _spikes(self, span: range | None, level: int) -> torch.Tensor | None:
        if span is None:
            state = self.states[level]
            return None if state is None else self.call.fire(state).detach()
        trace = self.recorder.trace(span, level)
        assert trace.layout is not None and trace.spikes is not None  # read, therefore on record
        spikes = trace.layout.unpack(self.kept[trace.spikes])
        return spikes.to(self.recorder.dtypes[level])

    def _push(
        self,
        span: range,
        level: int,
        f: torch.Tensor,
        below: torch.Tensor,
        above: torch.Tensor | None,
        grad: torch.Tensor,
    ) -> None:
        """Push G through f to the spikes it came from and to the parameters."""
        if not f.requires_grad:
            return
        module = self.call.module(span, level)
        indices = self.stand_ins.of(module)
        sources = [x for x in (below, above) if x is not None and x.requires_grad]
        leaves = sources + [self.stand_ins.leaves[i] for i in indices]
        if module not in self.checked:
            self.checked.add(module)
            if foreign_leaves(f, leaves):
                raise foreign_parameter(level, module)
        grads = torch.autograd.grad(f, leaves, grad.to(f.dtype), allow_unused=True)
        read = below.requires_grad, above is not None and above.requires_grad
        self._hand_out(span, level, grads, read, indices)

    def _push_kept(self, span: range, level: int, grad: torch.Tensor) -> None:
        """The same through a graph that was kept."""
        graph: Graph | None = self.recorder.trace(span, level).graph
        if graph is None:
            return
        stand_ins = self.graphs.stand_ins
        indices = stand_ins.of(self.call.module(span, level))
        sources = [edge for edge in (graph.below, graph.above) if edge is not None]
        leaves: list[Any] = [*sources, *(stand_ins.leaves[i] for i in indices)]
        if not leaves:
            return
        grads = torch.autograd.grad(
            [graph.output],
            leaves,
            [grad.to(graph.dtype)],
            allow_unused=True,
            retain_graph=self.again,
        )
        read = graph.below is not None, graph.above is not None
        self._hand_out(span, level, grads, read, indices)

    def _hand_out(
        self,
        span: range,
        level: int,
        grads: Sequence[torch.Tensor | None],
        read: tuple[bool, bool],
        indices: Sequence[int],
    ) -> None:
        """Gradients of what a level read from below and above, and of its parameters."""
        found = iter(grads)
        below, above = read
        if below and level:
            self.levels[level - 1].add_grad_spikes(next(found))
        elif below:
            self._add_grad_input(span, next(found))
        if above:
            self.levels[level + 1].add_grad_spikes(next(found))
        for index, g in zip(indices, found, strict=True):
            self.grad_parameters.add(index, g)

    def _add_grad_input(self, span: range, grad: torch.Tensor | None) -> None:
        if grad is None:
            return
        for t, g in zip(span, split(grad, span), strict=True):
            if self.call.input_index is None:
                whole = self.grad_inputs[0]
                if whole is None:
                    x = self.inputs[0]
                    whole = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
                    self.grad_inputs[0] = whole
                whole[t] = g
            elif self.needs.inputs[self.call.input_index[t]]:
                index = self.call.input_index[t]
                sofar = self.grad_inputs[index]
                self.grad_inputs[index] = g if sofar is None else sofar + g

    def _grad_decay(
        self,
        t: int,
        level: int,
        f: torch.Tensor | None,
        before: torch.Tensor | None,
        grad: torch.Tensor,
    ) -> None:
        index = self.call.decay(t, level)
        if not self.needs.decays[index]:
            return
        a, state = self.decays[index], self.levels[level]
        if f is not None and self.recorder.decay_by_outputs(level):
            if state.h is not None:
                self.grad_decays.add(index, (f * state.h).sum_to_size(a.shape))
            state.h = grad if state.h is None else torch.addcmul(grad, a, state.h)
        elif before is not None:  # None: the first step of all, before which u is 0
            self.grad_decays.add(index, (grad * before).sum_to_size(a.shape))

    def _before_the_call(self, level: int) -> torch.Tensor | None:
        """The gradient of the state that the call started from, and that state's share in a's."""
        u, state = self.states[level], self.levels[level]
        if u is None:
            return None
        index = self.call.decay(0, level)
        a = self.decays[index]
        if state.h is not None:
            self.grad_decays.add(index, (state.h * u).sum_to_size(a.shape))
        if not self.needs.states[level]:
            return None
        grad = None if state.grad_u is None else a * state.grad_u
        if state.grad_spikes is not None:
            through = self._through_surrogate(None, level, state.grad_spikes, u)
            grad = through if grad is None else grad + through
        return grad


class _Sums:
    """Gradients that are summed over steps; none changes a tensor that somebody else may hold."""

    def __init__(self, size: int):
        self._sums: list[torch.Tensor | None] = [None] * size
        self._owned = [False] * size

    def add(self, index: int, value: torch.Tensor | None) -> None:
        if value is None:
            return
        sofar = self._sums[index]
        if sofar is None:
            self._sums[index] = value
        elif self._owned[index]:
            sofar.add_(value)
        else:
            self._sums[index] = sofar + value
            self._owned[index] = True

    def like(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        return [
            None if g is None else g.to(x.dtype) for g, x in zip(self._sums, tensors, strict=True)
        ]
