r"""One autograd function over all steps and levels, whose backward pass undoes them one by one.

With G_l[t] the gradient of the loss with respect to u_l[t] over all paths, step t of level l is
undone by

1. G_l[t] = (gradients of the outputs) + surrogate'(u_l[t]) * (gradient of s_l[t]) + a_l G_l[t+1];
2. running f = F_l(s_{l-1}[t], s_{l+1}[t-1]) again on the recorded spikes, and pushing G_l[t] through
   it to the spikes and the parameters;
3. the decay's gradient. Where a_l is the same at every step, sum_t G[t] u[t-1] = sum_k f[k] H[k]
   with H[k] = G[k+1] + a H[k+1], which needs no potential. Otherwise u[t-1] is rebuilt.

Levels go from the top to the bottom within a step: then the gradient of s_l[t], which comes from
level l + 1 at t and level l - 1 at t + 1, is complete when level l is reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.function import once_differentiable

from ... import surrogate
from .dynamics import Call, Observer, roll_out, run_level
from .record import Bits, anchor_steps, fingerprint, relative_difference
from .replay import AutocastState, RandomState, Shadows, equal_states, foreign_leaves

__all__ = ["Options", "run_reversibly"]


@dataclass(frozen=True)
class Options:
    """How potentials are rebuilt and how a replay is checked."""

    #: error that a rebuilt potential may have, relative to the largest potential
    tolerance: float
    #: relative difference from which an output that is computed again counts as another one
    replay_tolerance: float | None


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


def _split(sizes: Sequence[int], values: Sequence) -> list[list]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(values[start : start + size]))
        start += size
    return parts


def _rectangle(call: Call) -> float | None:
    """alpha of a rectangular window, None for any other surrogate."""
    function = call.surrogate_function
    return float(function.alpha) if type(function) is surrogate.Rect else None


@dataclass
class _Needs:
    """What autograd would find to require a gradient."""

    inputs: list[bool]
    states: list[bool]
    decays: list[bool]
    potential: list[list[bool]] = field(init=False)

    def __init__(self, call: Call, inputs, states, decays, of_modules: Sequence[Sequence[bool]]):
        self.inputs, self.states, self.decays = inputs, states, decays
        self.potential = []
        before = states
        for t in range(call.num_steps):
            now: list[bool] = []
            index = 0 if call.input_index is None else call.input_index[t]
            for level in range(call.num_levels):
                below = now[level - 1] if level else inputs[index]
                above = level + 1 < call.num_levels and before[level + 1]
                own = of_modules[t][level] or decays[call.decay_index[t][level]]
                now.append(below or above or own or before[level])
            self.potential.append(now)
            before = now

    def of(self, t: int, level: int) -> bool:
        return self.states[level] if t < 0 else self.potential[t][level]

    def readers(self, call: Call, t: int, level: int) -> bool:
        """Whether a level that is undone reads s_level[t]."""
        below = t >= 0 and level + 1 < call.num_levels and self.potential[t][level + 1]
        above = level >= 1 and t + 1 < call.num_steps and self.potential[t + 1][level - 1]
        return below or above


class _Recorder(Observer):
    """Keeps, of every level and step, what undoing it will ask for."""

    def __init__(self, call: Call, options: Options, needs: _Needs, decays, device: torch.device):
        self.call, self.needs, self.options = call, needs, options
        self.alpha = _rectangle(call)
        self.random = RandomState(device)
        self._random_now = self.random.get()
        self.tensors: list[torch.Tensor] = []
        self.spikes: dict[tuple[int, int], int] = {}
        self.windows: dict[tuple[int, int], int] = {}
        self.fingerprints: dict[tuple[int, int], int] = {}
        self.random_states: dict[tuple[int, int], list[int]] = {}
        self.potentials: dict[tuple[int, int], int] = {}
        self.layouts: list[Bits | None] = [None] * call.num_levels
        self.dtypes: list[torch.dtype | None] = [None] * call.num_levels
        self.anchors: dict[int, frozenset[int]] = {}
        self._smallest: list[float] | None = None
        self.shared_decay = [
            len({column[level] for column in call.decay_index}) == 1
            for level in range(call.num_levels)
        ]
        self._decays = decays

    def _keep(self, tensor: torch.Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def before_level(self, t: int, level: int) -> None:
        self._random_before = self._random_now

    def after_level(self, t: int, level: int, f: torch.Tensor, u: torch.Tensor) -> None:
        self._random_now = self.random.get()
        if self.layouts[level] is None:
            self.layouts[level] = Bits.like(u)
            self.dtypes[level] = u.dtype
        if not self.needs.of(t, level):
            return
        if not equal_states(self._random_before, self._random_now):
            self.random_states[t, level] = [self._keep(s) for s in self._random_before]
        if self.options.replay_tolerance is not None:
            self.fingerprints[t, level] = self._keep(fingerprint(f))
        if t in self._anchors(level):
            self.potentials[t, level] = self._keep(u.detach())

    def fired(self, t: int, level: int, u: torch.Tensor, spikes: torch.Tensor) -> None:
        if t < 0 or not self.needs.readers(self.call, t, level):
            return
        layout = self.layouts[level]
        self.spikes[t, level] = self._keep(layout.pack(spikes != 0))
        if self.alpha is not None and self.needs.of(t, level):
            window = (u - self.call.v_threshold).abs_() < 0.5 / self.alpha
            self.windows[t, level] = self._keep(layout.pack(window))

    def let_go(self) -> None:
        """Forget the tensors, which autograd keeps from here on."""
        self.tensors, self._decays = [], []
        self._random_now = self._random_before = []

    def _anchors(self, level: int) -> frozenset[int]:
        """Steps of a level whose potential is kept."""
        if level not in self.anchors:
            last = self._last_potential(level)
            self.anchors[level] = frozenset()
            if last >= 0:
                if self._smallest is None:  # all in one go: on a GPU every look waits for it
                    magnitudes = [a.detach().abs().min().double() for a in self._decays]
                    self._smallest = torch.stack(magnitudes).tolist()
                smallest = min(self._smallest[column[level]] for column in self.call.decay_index)
                self.anchors[level] = anchor_steps(
                    last, smallest, self.dtypes[level], self.options.tolerance
                )
        return self.anchors[level]

    def _last_potential(self, level: int) -> int:
        """The last step whose potential undoing this level needs, -1 for none at all."""
        steps = self.call.num_steps
        if self.alpha is None and self.call.has_consumer(0, level):
            return steps - 1
        used = {column[level] for column in self.call.decay_index}
        if not self.shared_decay[level] and any(self.needs.decays[i] for i in used):
            return steps - 2
        return -1


class _Undo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, options, sizes, *flat):
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
        needs = _Needs(call, needed[0], state_needs, needed[2], of_modules)

        ctx.set_materialize_grads(False)
        ctx.autocast = AutocastState(inputs[0].device.type)
        recorder = _Recorder(call, options, needs, decays, inputs[0].device)
        u_top, final = roll_out(call, inputs, states, decays, recorder)
        # Casts of weights that autocast made here know of no gradient; nobody may meet them later.
        torch.clear_autocast_cache()
        ctx.call, ctx.options, ctx.sizes, ctx.needs = call, options, sizes, needs
        ctx.save_for_backward(*flat, *recorder.tensors)
        ctx.recorder = recorder
        recorder.let_go()
        return u_top, *final

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_top, *grad_final):
        saved = _saved_tensors(ctx)
        count = sum(ctx.sizes)
        undoing = _Undoing(ctx, _split(ctx.sizes, saved[:count]), saved[count:])
        return None, None, None, *undoing.run(grad_top, grad_final)


def _saved_tensors(ctx) -> tuple[torch.Tensor, ...]:
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

    def __init__(self, ctx, groups: list[list[torch.Tensor]], kept: Sequence[torch.Tensor]):
        self.call: Call = ctx.call
        self.needs: _Needs = ctx.needs
        self.recorder: _Recorder = ctx.recorder
        self.options: Options = ctx.options
        self.autocast: AutocastState = ctx.autocast
        self.inputs, carried, self.decays, self.parameters = groups
        levels = self.call.num_levels
        self.states: list[torch.Tensor | None] = carried or [None] * levels
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
        self.differences: dict[tuple[int, int], torch.Tensor] = {}
        self.checked: set[torch.nn.Module] = set()

    def run(self, grad_top, grad_final) -> list[torch.Tensor | None]:
        call = self.call
        everything = [module for column in call.modules for module in column]
        if isinstance(call.surrogate_function, torch.nn.Module):
            everything.append(call.surrogate_function)
        replays_random = bool(self.recorder.random_states)
        random_now = self.recorder.random.get() if replays_random else None
        shadows = Shadows(everything, self.parameters)
        try:
            with shadows.in_place() as self.shadows, self.autocast.again():
                for t in reversed(range(call.num_steps)):
                    for level in reversed(range(call.num_levels)):
                        arriving = [grad_final[level]] if t == call.num_steps - 1 else []
                        if level == call.num_levels - 1 and grad_top is not None:
                            arriving.append(grad_top[t])
                        self._undo(t, level, arriving)
                grad_states = [self._before_the_call(level) for level in range(call.num_levels)]
        finally:
            if random_now is not None:
                self.recorder.random.set(random_now)
        self._check_replay()
        if self.states[0] is None:
            grad_states = []
        return [
            *self.grad_inputs,
            *grad_states,
            *self.grad_decays.like(self.decays),
            *self.grad_parameters.like(self.parameters),
        ]

    def _undo(self, t: int, level: int, arriving: Sequence[torch.Tensor | None]) -> None:
        if not self.needs.of(t, level):
            return
        key = (t, level)
        if key in self.recorder.potentials:
            self.u[level] = self.kept[self.recorder.potentials[key]]
        grad = self._grad_u(t, level, arriving)
        rebuilds = (
            self.u[level] is not None and t > 0 and ((t - 1, level) not in self.recorder.potentials)
        )
        if grad is None:
            if rebuilds:
                self._rebuild(t, level, self._replay(t, level, None, None))
            self.grad_u[level] = None
            return
        below, above = self._sources(t, level)
        f = self._replay(t, level, below, above)
        self._push(t, level, f, below, above, grad)
        f = f.detach()
        del below, above
        if rebuilds:
            self._rebuild(t, level, f)
        elif t == 0:
            self.u[level] = self.states[level]
        else:
            kept = self.recorder.potentials.get((t - 1, level))
            self.u[level] = None if kept is None else self.kept[kept]
        self._grad_decay(t, level, f, grad)
        self.grad_u[level] = grad

    def _grad_u(self, t: int, level: int, arriving) -> torch.Tensor | None:
        """G_level[t], or None where no gradient arrives."""
        grad = None
        for g in arriving:
            if g is not None:
                grad = g if grad is None else grad + g
        spikes, self.grad_spikes[level] = self.grad_spikes[level], None
        if spikes is not None:
            through = self._through_surrogate(t, level, spikes)
            grad = through if grad is None else through + grad
        after = self.grad_u[level]
        if after is not None:
            a = self.decays[self.call.decay_index[t + 1][level]]
            grad = a * after if grad is None else torch.addcmul(grad, a, after)
        return grad

    def _through_surrogate(self, t: int, level: int, grad: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to u_level[t] from the one with respect to its spikes."""
        window = self.recorder.windows.get((t, level))
        if window is not None:
            inside = self.recorder.layouts[level].unpack(self.kept[window])
            grad = grad * inside
            return grad if self.recorder.alpha == 1 else grad.mul_(self.recorder.alpha)
        u = self.states[level] if t < 0 else self.u[level]
        indices = self._surrogate_parameters()
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            leaves = [u, *(self.shadows.leaves[i] for i in indices)]
            grad, *others = torch.autograd.grad(self.call.fire(u), leaves, grad, allow_unused=True)
        for index, g in zip(indices, others, strict=True):
            self.grad_parameters.add(index, g)
        return torch.zeros_like(u) if grad is None else grad

    def _surrogate_parameters(self) -> list[int]:
        function = self.call.surrogate_function
        return self.shadows.of(function) if isinstance(function, torch.nn.Module) else []

    def _sources(self, t: int, level: int):
        """The two inputs of F_level at step t, as leaves that want a gradient where it is of use."""
        call = self.call
        if level:
            below = self._spikes(t, level - 1)
            below.requires_grad_(self.needs.of(t, level - 1))
        else:
            index = 0 if call.input_index is None else call.input_index[t]
            below = call.input_of(self.inputs, t).detach().requires_grad_(self.needs.inputs[index])
        above = None
        if level + 1 < call.num_levels and (t > 0 or self.states[level + 1] is not None):
            above = self._spikes(t - 1, level + 1)
            above.requires_grad_(self.needs.of(t - 1, level + 1))
        return below, above

    def _spikes(self, t: int, level: int) -> torch.Tensor:
        if t < 0:
            return self.call.fire(self.states[level]).detach()
        bits = self.kept[self.recorder.spikes[t, level]]
        return self.recorder.layouts[level].unpack(bits).to(self.recorder.dtypes[level])

    def _replay(self, t: int, level: int, below, above) -> torch.Tensor:
        """f of step t again, with its graph if its inputs are given as leaves."""
        with_graph = below is not None
        if not with_graph:
            below, above = self._sources(t, level)
        state = self.recorder.random_states.get((t, level))
        if state is not None:
            self.recorder.random.set([self.kept[i] for i in state])
        module = self.call.modules[t][level]
        grad_mode = torch.enable_grad() if with_graph else contextlib.nullcontext()
        with grad_mode, self.shadows.memories_kept(module):
            f = run_level(self.call, t, level, below, above)
        index = self.recorder.fingerprints.get((t, level))
        if index is not None:
            before = self.kept[index]
            if f.shape != self.recorder.layouts[level].shape:
                self._other_output(t, level, f"shape {list(f.shape)}")
            self.differences[t, level] = relative_difference(fingerprint(f), before)
        return f

    def _push(self, t: int, level: int, f, below, above, grad) -> None:
        """Push G through f to the spikes it came from and to the parameters."""
        module = self.call.modules[t][level]
        indices = self.shadows.of(module)
        sources = [x for x in (below, above) if x is not None and x.requires_grad]
        leaves = sources + [self.shadows.leaves[i] for i in indices]
        if not f.requires_grad:
            return
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
                self._add_grad_input(t, g)
        if above is not None and above.requires_grad:
            self._add_grad_spikes(level + 1, grads.pop(0))
        for index, g in zip(indices, grads, strict=True):
            self.grad_parameters.add(index, g)

    def _add_grad_spikes(self, level: int, grad: torch.Tensor | None) -> None:
        if grad is not None:
            sofar = self.grad_spikes[level]
            self.grad_spikes[level] = grad if sofar is None else sofar + grad

    def _add_grad_input(self, t: int, grad: torch.Tensor | None) -> None:
        if grad is None:
            return
        if self.call.input_index is None:
            if self.grad_inputs[0] is None:
                x = self.inputs[0]
                self.grad_inputs[0] = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
            self.grad_inputs[0][t] = grad
        else:
            index = self.call.input_index[t]
            sofar = self.grad_inputs[index]
            self.grad_inputs[index] = grad if sofar is None else sofar + grad

    def _rebuild(self, t: int, level: int, f: torch.Tensor) -> None:
        """u[t-1] from u[t]."""
        a = self.decays[self.call.decay_index[t][level]]
        self.u[level] = (self.u[level] - f).div_(a)

    def _grad_decay(self, t: int, level: int, f: torch.Tensor, grad: torch.Tensor) -> None:
        index = self.call.decay_index[t][level]
        if not self.needs.decays[index]:
            return
        a = self.decays[index]
        if self.recorder.shared_decay[level]:
            h = self.h[level]
            if h is not None:
                self.grad_decays.add(index, (f * h).sum_to_size(a.shape))
            self.h[level] = grad if h is None else torch.addcmul(grad, a, h)
        elif self.u[level] is not None:  # None: the first step of all, before which u is 0
            self.grad_decays.add(index, (grad * self.u[level]).sum_to_size(a.shape))

    def _before_the_call(self, level: int) -> torch.Tensor | None:
        """The gradient of the state that the call started from, and that state's share in a's."""
        state = self.states[level]
        if state is None:
            return None
        h = self.h[level]
        if h is not None:
            index = self.call.decay_index[0][level]
            self.grad_decays.add(index, (h * state).sum_to_size(self.decays[index].shape))
        if not self.needs.states[level]:
            return None
        after = self.grad_u[level]
        grad = None
        if after is not None:
            grad = self.decays[self.call.decay_index[0][level]] * after
        spikes = self.grad_spikes[level]
        if spikes is not None:
            through = self._through_surrogate(-1, level, spikes)
            grad = through if grad is None else grad + through
        return grad

    def _check_replay(self) -> None:
        """One look at all differences at the end: on a GPU every look waits for the device."""
        if not self.differences:
            return
        differences = torch.stack(list(self.differences.values()))
        bad = ~(differences <= self.options.replay_tolerance)  # also where it is not a number
        if bad.any():
            places = list(self.differences)
            t, level = places[int(bad.nonzero()[0])]
            worst = float(differences[bad][0])
            self._other_output(t, level, f"a relative difference of {worst:.2g}")

    def _other_output(self, t: int, level: int, how: str) -> None:
        name = type(self.call.modules[t][level]).__name__
        raise RuntimeError(
            f"levels: level {level} ({name}) gave another output when step {t} was run again for "
            f"the backward pass ({how}). A level must compute the same from the same inputs: it may "
            "not keep a state over time, nor read random numbers from outside PyTorch's generators, "
            "nor depend on buffers that its forward pass changes. Use memory='autograd' for such "
            "levels, or raise replay_tolerance if its kernels are known to vary"
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
