r"""One autograd function over all steps and levels, whose backward pass undoes them one by one.

With G_l[t] the gradient of the loss with respect to u_l[t] over all paths, step t of level l is
undone by

1. G_l[t] = (gradients of the outputs) + surrogate'(u_l[t]) * (gradient of s_l[t]) + a_l G_l[t+1];
2. running f = F_l(s_{l-1}[t], s_{l+1}[t-1]) again on the recorded spikes, and pushing G_l[t]
   through it to the spikes and the parameters;
3. the decay's gradient. Where a_l is the same at every step, sum_t G[t] u[t-1] = sum_k f[k] H[k]
   with H[k] = G[k+1] + a H[k+1], which needs no potential. Otherwise u[t-1] is rebuilt.

Levels go from the top to the bottom within a step: then the gradient of s_l[t], which comes from
level l + 1 at t and level l - 1 at t + 1, is complete when level l is reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .dynamics import Call, joined, roll_out, run_level, split
from .record import Fingerprints, relative_differences
from .recorder import Needs, Options, Recorder
from .replay import AutocastState, Shadows, foreign_leaves

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
        needs_of = {id(p): need for p, need in zip(parameters, needed[3], strict=True)}
        surrogate_needs = any(needs_of[id(p)] for p in call.surrogate_parameters())
        of_module = {
            module: surrogate_needs or any(needs_of[id(p)] for p in module.parameters())
            for column in call.modules
            for module in column
        }
        of_modules = [[of_module[module] for module in column] for column in call.modules]
        needs = Needs(call, needed[0], state_needs, needed[2], of_modules)

        ctx.set_materialize_grads(False)
        ctx.autocast = AutocastState(inputs[0].device.type)
        recorder = Recorder(call, options, needs, decays, inputs[0].device)
        u_top, final = roll_out(call, inputs, states, decays, recorder)
        # Casts of weights that autocast made here know of no gradient. Releases of PyTorch that
        # cache them would hand them to layers that want one.
        torch.clear_autocast_cache()
        ctx.call, ctx.options, ctx.sizes, ctx.needs = call, options, sizes, needs
        ctx.save_for_backward(*flat, *recorder.tensors)
        ctx.recorder = recorder
        ctx.parameters = parameters  # saved tensors need not come back as the same objects
        recorder.let_go()
        return u_top, *final

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_top: torch.Tensor | None, *grad_final: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        saved = _saved_tensors(ctx)
        count = sum(ctx.sizes)
        undoing = _Undoing(ctx, _split(ctx.sizes, saved[:count]), saved[count:])
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


class _Undoing:
    """The state of one backward pass."""

    def __init__(self, ctx: Any, groups: list[list[torch.Tensor]], kept: Sequence[torch.Tensor]):
        self.call: Call = ctx.call
        self.needs: Needs = ctx.needs
        self.recorder: Recorder = ctx.recorder
        self.options: Options = ctx.options
        self.autocast: AutocastState = ctx.autocast
        self.inputs, carried, self.decays, self.parameters = groups
        #: the parameters that the modules have, whose values ``parameters`` are
        self.owned: list[torch.Tensor] = ctx.parameters
        levels = self.call.num_levels
        self.states: list[torch.Tensor | None] = [*carried] or [None] * levels
        self.kept = kept
        # by level, of the step that was undone last:
        self.grad_u: list[torch.Tensor | None] = [None] * levels
        self.grad_spikes: list[torch.Tensor | None] = [None] * levels
        self.h: list[torch.Tensor | None] = [None] * levels
        self.u: list[torch.Tensor | None] = [None] * levels
        # by place among the function's inputs:
        self.grad_inputs: list[torch.Tensor | None] = [None] * len(self.inputs)
        self.grad_decays = _Sums(len(self.decays))
        self.grad_parameters = _Sums(len(self.parameters))
        self.fingerprints: dict[tuple[int, int], torch.Tensor] = {}
        self._fingerprints = Fingerprints()
        self.checked: set[torch.nn.Module] = set()

    def run(
        self, grad_top: torch.Tensor | None, grad_final: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        call = self.call
        everything = [module for column in call.modules for module in column]
        if isinstance(call.surrogate_function, torch.nn.Module):
            everything.append(call.surrogate_function)
        shadows = Shadows(everything, self.owned, self.parameters)
        self.grad_top, self.grad_final = grad_top, grad_final
        with shadows.in_place() as self.shadows, self.autocast.again():
            for span in reversed(range(len(call.spans))):
                for level in reversed(range(call.num_levels)):
                    if self.needs.of(span, level):
                        self._undo(span, level)
            grad_states = [self._before_the_call(level) for level in range(call.num_levels)]
        self._check_replay()
        if self.states[0] is None:
            grad_states = []
        return [
            *self.grad_inputs,
            *grad_states,
            *self.grad_decays.like(self.decays),
            *self.grad_parameters.like(self.parameters),
        ]

    def _undo(self, number: int, level: int) -> None:
        span = self.call.spans[number]
        arriving = self._arriving(span, level)
        silent = self.grad_u[level] is None and self.grad_spikes[level] is None
        if (
            silent
            and not any(arriving)
            and self.u[level] is None
            and not any((t, level) in self.recorder.potentials for t in span)
        ):
            return
        below, above = self._sources(number, level)
        f = self._replay(number, level, below, above)
        currents = split(f.detach(), span, level)
        after, before = self._potentials(span, level, currents)
        grads = self._grads_u(number, level, arriving, after)
        if grads is None:
            return
        self._push(number, level, f, below, above, joined(grads))
        del f, below, above
        for t, current, u, grad in reversed(list(zip(span, currents, before, grads, strict=True))):
            self._grad_decay(t, level, current, u, grad)
        self.grad_u[level] = grads[0]

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
        self, span: range, level: int, currents: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
        """u[t] and u[t-1] for the steps t of a span, None where they are not known."""
        kept = self.recorder.potentials
        after: list[torch.Tensor | None] = []
        before: list[torch.Tensor | None] = []
        for t, f in reversed(list(zip(span, currents, strict=True))):
            if (t, level) in kept:
                self.u[level] = self.kept[kept[t, level]]
            u = self.u[level]
            after.insert(0, u)
            if t == 0:
                u = self.states[level]
            elif (t - 1, level) in kept:
                u = self.kept[kept[t - 1, level]]
            elif u is not None:
                u = (u - f).div_(self.decays[self.call.decay_index[t][level]])
            before.insert(0, u)
            self.u[level] = u
        return after, before

    def _grads_u(
        self,
        number: int,
        level: int,
        arriving: list[list[torch.Tensor]],
        after: list[torch.Tensor | None],
    ) -> list[torch.Tensor] | None:
        """G[t] for the steps t of a span, None where no gradient arrives at any."""
        span = self.call.spans[number]
        through: Sequence[torch.Tensor | None] = [None] * len(span)
        spikes, self.grad_spikes[level] = self.grad_spikes[level], None
        if spikes is not None:
            known = [u for u in after if u is not None]
            u = joined(known) if len(known) == len(after) else None
            through = split(self._through_surrogate(number, level, spikes, u), span)
        grads: list[torch.Tensor | None] = [None] * len(span)
        later = self.grad_u[level]
        for i in reversed(range(len(span))):
            grad = through[i]
            for g in arriving[i]:
                grad = g if grad is None else grad + g
            if later is not None:
                a = self.decays[self.call.decay_index[span[i] + 1][level]]
                grad = a * later if grad is None else torch.addcmul(grad, a, later)
            grads[i] = later = grad
        if grads[0] is None:  # a gradient at any step reaches the first one
            return None
        return [torch.zeros_like(grads[0]) if g is None else g for g in grads]

    def _through_surrogate(
        self, number: int, level: int, grad: torch.Tensor, u: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradient with respect to the potentials from the one with respect to spikes."""
        key = (number, level)
        if key in self.recorder.windows:
            packed, layout = self.kept[self.recorder.windows[key]], self.recorder.layouts[key]
            assert self.recorder.window is not None
            return layout.restored(self.recorder.window.apply(packed, layout.ordered(grad)))
        assert u is not None  # rebuilt, or kept, wherever the window is not on record
        indices = self._surrogate_parameters()
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            leaves = [u, *(self.shadows.leaves[i] for i in indices)]
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
        return self.shadows.of(function) if isinstance(function, torch.nn.Module) else []

    def _sources(self, number: int, level: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The two inputs of F_level over a span, as leaves that want a gradient where needed."""
        call = self.call
        if level:
            fired = self._spikes(number, level - 1)
            assert fired is not None  # only before the call there may be no spikes
            below = fired.requires_grad_(self.needs.of(number, level - 1))
        else:
            span = call.spans[number]
            below = call.input_of(self.inputs, span).detach()
            below.requires_grad_(any(self.needs.inputs[i] for i in call.inputs_read(span)))
        above = None
        if call.feedback and level + 1 < call.num_levels:
            above = self._spikes(number - 1, level + 1)
            if above is not None:
                above.requires_grad_(self.needs.of(number - 1, level + 1))
        return below, above

    def _spikes(self, number: int, level: int) -> torch.Tensor | None:
        if number < 0:
            state = self.states[level]
            return None if state is None else self.call.fire(state).detach()
        key = (number, level)
        spikes = self.recorder.layouts[key].unpack(self.kept[self.recorder.spikes[key]])
        return spikes.to(self.recorder.dtypes[level])

    def _replay(
        self, number: int, level: int, below: torch.Tensor, above: torch.Tensor | None
    ) -> torch.Tensor:
        """F_level over a span again, with its graph."""
        key, span = (number, level), self.call.spans[number]
        start = self.recorder.starts.get(key)
        random: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if start is not None:
            states = start if isinstance(start, int) else [self.kept[i] for i in start]
            random = self.recorder.random.started_from(states)
        module = self.call.modules[span[0]][level]
        with torch.enable_grad(), self.shadows.memories_kept(module), random:
            f = run_level(self.call, span, level, below, above)
        if f.shape != self.recorder.shapes[key]:
            self._other_output(number, level, f"shape {list(f.shape)}")
        if key in self.recorder.fingerprints:
            self.fingerprints[key] = self._fingerprints.of(f)
        return f

    def _push(
        self,
        number: int,
        level: int,
        f: torch.Tensor,
        below: torch.Tensor,
        above: torch.Tensor | None,
        grad: torch.Tensor,
    ) -> None:
        """Push G through f to the spikes it came from and to the parameters."""
        if not f.requires_grad:
            return
        span = self.call.spans[number]
        module = self.call.modules[span[0]][level]
        indices = self.shadows.of(module)
        sources = [x for x in (below, above) if x is not None and x.requires_grad]
        leaves = sources + [self.shadows.leaves[i] for i in indices]
        if module not in self.checked:
            self.checked.add(module)
            if foreign_leaves(f, leaves):
                raise RuntimeError(
                    f"levels: level {level} ({type(module).__name__}) depends on a tensor that "
                    "requires a gradient and is neither one of its inputs nor one of its "
                    "parameters, so its gradient would be lost; register it as a parameter of the "
                    "level, or use memory='autograd'"
                )
        grads = list(torch.autograd.grad(f, leaves, grad.to(f.dtype), allow_unused=True))
        if below.requires_grad:
            g = grads.pop(0)
            if level:
                self._add_grad_spikes(level - 1, g)
            else:
                self._add_grad_input(span, g)
        if above is not None and above.requires_grad:
            self._add_grad_spikes(level + 1, grads.pop(0))
        for index, g in zip(indices, grads, strict=True):
            self.grad_parameters.add(index, g)

    def _add_grad_spikes(self, level: int, grad: torch.Tensor | None) -> None:
        if grad is not None:
            sofar = self.grad_spikes[level]
            self.grad_spikes[level] = grad if sofar is None else sofar + grad

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
        f: torch.Tensor,
        before: torch.Tensor | None,
        grad: torch.Tensor,
    ) -> None:
        index = self.call.decay_index[t][level]
        if not self.needs.decays[index]:
            return
        a = self.decays[index]
        if self.recorder.shared_decay[level]:
            h = self.h[level]
            if h is not None:
                self.grad_decays.add(index, (f * h).sum_to_size(a.shape))
            self.h[level] = grad if h is None else torch.addcmul(grad, a, h)
        elif before is not None:  # None: the first step of all, before which u is 0
            self.grad_decays.add(index, (grad * before).sum_to_size(a.shape))

    def _before_the_call(self, level: int) -> torch.Tensor | None:
        """The gradient of the state that the call started from, and that state's share in a's."""
        state = self.states[level]
        if state is None:
            return None
        a_index = self.call.decay_index[0][level]
        h = self.h[level]
        if h is not None:
            self.grad_decays.add(a_index, (h * state).sum_to_size(self.decays[a_index].shape))
        if not self.needs.states[level]:
            return None
        later = self.grad_u[level]
        grad = None if later is None else self.decays[a_index] * later
        spikes = self.grad_spikes[level]
        if spikes is not None:
            through = self._through_surrogate(-1, level, spikes, state)
            grad = through if grad is None else grad + through
        return grad

    def _check_replay(self) -> None:
        """One look at all differences at the end: on a GPU every look waits for the device."""
        tolerance = self.options.replay_tolerance
        if not self.fingerprints or tolerance is None:
            return
        keys = list(self.fingerprints)
        differences = relative_differences(
            [self.fingerprints[key] for key in keys],
            [self.kept[self.recorder.fingerprints[key]] for key in keys],
        )
        bad = ~(differences <= tolerance)  # also where it is not a number
        if bad.any():
            worst = int(bad.nonzero()[0])
            self._other_output(*keys[worst], f"a relative difference of {differences[worst]:.2g}")

    def _other_output(self, number: int, level: int, how: str) -> None:
        t = self.call.spans[number][0]
        name = type(self.call.modules[t][level]).__name__
        raise RuntimeError(
            f"levels: level {level} ({name}) gave another output when step {t} was run again for "
            f"the backward pass ({how}). A level must compute the same from the same inputs: it "
            "may not keep a state over time, nor read random numbers from outside PyTorch's "
            "generators, nor depend on buffers that its forward pass changes. Use "
            "memory='autograd' for such levels, or raise replay_tolerance if its kernels are known "
            "to vary"
        )


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
