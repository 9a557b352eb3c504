"""The temporally reversible multi-level cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo

from ... import checks, host
from ...arguments import checked
from ...inference import gradient_wanted
from ...ops.turn_on.sequence import away_from_zero
from ...recomputation import Recomputable
from ...surrogate import Rect
from .arguments import check_batch, inputs_of, level_table
from .dynamics import Call, roll_out
from .function import run_reversibly
from .recorder import Options

__all__ = ["TemporalReversible"]

MEMORY = ("reversible", "autograd")


class _Levels(host.layer.StepModeContainer):
    """Modules that the host's ``set_step_mode`` leaves in single-step mode.

    A level sees one step at a time whatever the step mode of the cell.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        nn.Sequential.__init__(self, *modules)
        self.stateful = False
        self.step_mode = "s"

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError("the levels run one by one: call the TemporalReversible cell")


@checked
class TemporalReversible(Recomputable, host.base.MemoryModule):
    r"""L levels of turn-on neurons with feedback, trained with memory that is flat in T.

    .. math::
        u_l[t] = a_l u_l[t-1] + F_l(s_{l-1}[t], s_{l+1}[t-1]), \qquad
        s_l[t] = H(u_l[t] - v_{th})

    with :math:`s_{-1}[t] = x[t]`. The top level has no upper neighbour; before the first step all
    potentials are 0 and there is no feedback.

    With ``memory='reversible'`` all steps are one node of the autograd graph. It keeps two bits per
    key neuron and step (the spike and, where the surrogate's window is rectangular, whether the
    potential was inside) and undoes the levels step by step in the backward pass: each F is run
    again on the recorded spikes and its graph is freed before the next one is built. The gradients
    are those of plain autograd up to the order of summation. Potentials are rebuilt by inversion
    only for windows that are not rectangular and for decays that differ from step to step, from
    exact potentials that are kept every few steps. ``memory='autograd'`` runs the same arithmetic
    on plain autograd.

    A level F_l computes the same from the same inputs. Batch normalisation and other buffers are
    fine (they are updated once), so are dropout and everything else that draws from PyTorch's
    generators, autocast and ``torch.compile``. A neuron in a level may keep no potential over time.
    Forward hooks inside the levels are called again when a level is undone. Cells that are
    trained in several threads wait for each other while a level runs.

    Args:
        levels: L modules ``level(below, above_or_None) -> current``, shared over time; or, for one
            column per step, T sequences of L modules. ``below`` is ``x[t]`` for level 0 and the
            spikes of the level beneath otherwise.
        decays: L numbers or tensors, or T sequences of L; each broadcasts to its level's state.
            They become the parameters in ``decays`` (``decays[l]`` or ``decays[t][l]``), a number
            as a vector of one, since FSDP2 shards no scalars; a ``Parameter`` is used as it is.
        v_threshold: the threshold :math:`v_{th}`. A potential at the threshold fires.
        surrogate_function: a surrogate of the host or of ``sj_ext``, in spiking mode.
        memory: ``'reversible'`` or ``'autograd'``.
        feedback: whether a level gets the spikes that the next higher level fired one step earlier.
            If not, every ``above`` is None.
        recompute: whether a level is run again when it is undone, or one answer per level. If not,
            its graph is kept, in which spikes and other tensors of one value beside 0 are bits and
            everything else that autograd saves is as it is; for a decay that learns, the potentials
            are kept as well. It takes more memory and less time, and matters with
            ``memory='reversible'`` only.
        chunk: steps that a level runs, and is undone over, as one batch of ``chunk * N``: faster
            where a step is too small for the device, with the graph of that many steps at a time.
            Only levels without feedback can run ahead of each other, and only where no level looks
            at statistics of its batch; with feedback every step waits for the one before.
        min_decay: the least magnitude of a decay. A learned decay that falls below acts with this
            magnitude, its sign kept, and still gets its gradient.
        tolerance: error that a rebuilt potential may have, relative to the largest potential; it
            decides how often potentials are kept.
        replay_tolerance: relative difference from which an output that was computed again counts as
            the sign of a level that is not deterministic. It is measured on a few elements per
            level and step. None turns the check off.
        step_mode: ``'m'`` or ``'s'``.

    Shapes:
        - Multi-step mode: ``x_seq`` ``[T, N, *]``, or a sequence of T tensors ``[N, *]``, in which
          a static input may stand T times and has then one gradient; to ``[T, N, *]``, the
          potentials of the top level.
        - Single-step mode: ``x`` ``[N, *]`` to ``[N, *]``; the states carry over from call to call.

    Raises:
        TypeError: an argument has the wrong type, or a level does not return a floating point
            tensor.
        ValueError: ``levels`` and ``decays`` do not fit together; a decay is not finite, is below
            ``min_decay`` or does not broadcast to its state; the shape that a level returns is not
            that of its state; there are more steps than columns; ``chunk`` is above 1 with
            feedback, columns or batch statistics.
        RuntimeError: a level changes its inputs in place, is not deterministic or depends on a
            tensor that is no parameter of it; backward runs a second time without
            ``retain_graph=True``.

    Source: "High-Performance Temporal Reversible Spiking Neural Networks with O(L) Training Memory
    and O(1) Inference Cost", ICML 2024, arXiv 2405.16466. The record of spikes, the decay's
    gradient without inversion and the single node over time are this package's.
    """

    def __init__(
        self,
        levels: Sequence[nn.Module] | Sequence[Sequence[nn.Module]],
        decays: Sequence[Any],
        *,
        v_threshold: float = 0.5,
        surrogate_function: Callable[[torch.Tensor], torch.Tensor] = Rect(),  # noqa: B008
        memory: str = "reversible",
        feedback: bool = True,
        recompute: bool | Sequence[bool] = True,
        chunk: int = 1,
        min_decay: float = 1e-3,
        tolerance: float = 1e-4,
        replay_tolerance: float | None = 0.05,
        step_mode: str = "m",
    ):
        super().__init__()
        self.v_threshold = checks.number("v_threshold", v_threshold)
        if not callable(surrogate_function):
            raise TypeError(f"surrogate_function must be callable, got {surrogate_function!r}")
        self.surrogate_function = surrogate_function
        host.own_surrogate(self)
        self.memory = memory
        self.min_decay = checks.number("min_decay", min_decay, above=0)
        self.tolerance = checks.number("tolerance", tolerance, above=0)
        if replay_tolerance is not None:
            replay_tolerance = checks.number("replay_tolerance", replay_tolerance, above=0)
        self.replay_tolerance = replay_tolerance

        table = level_table(levels)
        #: whether every step has levels of its own
        self.columns = table is not None
        own: list[Any] = list(levels) if table is None else [nn.ModuleList(row) for row in table]
        self.num_levels = len(own if table is None else own[0])
        self.levels = _Levels(own)
        self._init_decays(decays)
        self.feedback = bool(feedback)
        self.recompute = recompute
        self.chunk = chunk
        for level in range(self.num_levels):
            self.register_memory(f"u_{level}", None)
        self.register_memory("steps_done", 0)
        self.step_mode = step_mode

    @property
    def recompute(self) -> tuple[bool, ...]:
        """Whether each level is run again when it is undone; may be changed between calls."""
        return self._recompute

    @recompute.setter
    def recompute(self, value: bool | Sequence[bool]) -> None:
        answers = [value] * self.num_levels if isinstance(value, bool) else value
        if not isinstance(answers, Sequence) or not all(isinstance(x, bool) for x in answers):
            raise TypeError(f"recompute must be a bool, or one per level, got {value!r}")
        if len(answers) != self.num_levels:
            raise ValueError(
                f"recompute must have one entry per level, that is {self.num_levels}, "
                f"got {len(answers)}"
            )
        self._recompute = tuple(answers)

    @property
    def chunk(self) -> int:
        """Steps that a level runs as one batch; may be changed between calls."""
        return self._chunk

    @chunk.setter
    def chunk(self, chunk: int) -> None:
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            raise TypeError(f"chunk must be an integer, got {chunk!r}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        if chunk > 1 and self.columns:
            raise ValueError(
                f"chunk must be 1 where every step has levels of its own, got {chunk}: different "
                "weights do not run as one batch"
            )
        if chunk > 1 and self.feedback and self.num_levels > 1:
            raise ValueError(
                f"chunk must be 1 for levels with feedback, got {chunk}: each step waits for the "
                "spikes of the one before; use feedback=False or chunk=1"
            )
        self._chunk = chunk

    def _check_batch_statistics(self) -> None:
        for name, module in self.levels.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                module.training or module.running_mean is None
            ):
                raise ValueError(
                    f"chunk must be 1 with batch statistics, got {self.chunk}: levels.{name} "
                    f"({type(module).__name__}) would normalise over several steps at once; use "
                    "chunk=1, evaluation mode or another normalisation"
                )

    def _init_decays(self, decays: Any) -> None:
        if isinstance(decays, torch.Tensor):
            # one number per level, or per step and level
            decays = [list(a) if a.dim() else a for a in decays] if decays.dim() else []
        elif isinstance(decays, nn.ParameterList | nn.ModuleList):
            decays = list(decays)
        if not isinstance(decays, Sequence) or not decays:
            raise TypeError(
                f"decays must be a sequence of {self.num_levels} numbers or tensors, or one such "
                f"sequence per step, got {decays!r}"
            )
        is_row = {isinstance(entry, list | tuple | nn.ParameterList) for entry in decays}
        if len(is_row) > 1:
            raise TypeError(
                "decays must hold numbers or tensors, or one sequence per step, not both"
            )
        (nested,) = is_row
        rows = [list(row) for row in decays] if nested else [list(decays)]
        for t, row in enumerate(rows):
            if len(row) != self.num_levels:
                where = f"decays[{t}]" if nested else "decays"
                raise ValueError(
                    f"{where} must have one entry per level, that is {self.num_levels}, "
                    f"got {len(row)}"
                )
        if nested and self.columns and len(rows) != len(self.levels):
            raise ValueError(
                f"decays must have one row per step, that is {len(self.levels)} as levels has, "
                f"got {len(rows)}"
            )
        lists = [nn.ParameterList([self._decay(a) for a in row]) for row in rows]
        #: whether every step has decays of its own
        self.decay_per_step = nested
        self.decays = nn.ModuleList(lists) if nested else lists[0]

    def _decay(self, value: Any) -> nn.Parameter:
        if isinstance(value, torch.Tensor):
            if not value.is_floating_point():
                raise TypeError(f"decays must be floating point, got {value.dtype}")
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"decays must be numbers or tensors, got {value!r}")
        decay: nn.Parameter = value
        if not isinstance(value, nn.Parameter):
            # a number becomes a vector of one: FSDP2 shards no scalars
            decay = nn.Parameter(torch.atleast_1d(torch.as_tensor(value)).detach().to(copy=True))
            if not decay.is_floating_point():
                decay = nn.Parameter(decay.to(torch.get_default_dtype()))
        magnitude = decay.detach().abs()
        if decay.is_meta:  # a size without values, unless a number was given
            known = 1.0 if isinstance(value, torch.Tensor) else abs(value)
            magnitude = torch.tensor(known, device="cpu")
        # What is below the least magnitude only by rounding to its dtype is not below.
        least = self.min_decay * (1 - torch.finfo(decay.dtype).eps)
        if decay.numel() == 0 or not bool(((magnitude >= least) & magnitude.isfinite()).all()):
            raise ValueError(
                f"decays must be finite with a magnitude of at least min_decay={self.min_decay}, "
                f"got {value!r}"
            )
        return decay

    @property
    def memory(self) -> str:
        """``'reversible'`` or ``'autograd'``; may be changed between calls."""
        return self._memory

    @memory.setter
    def memory(self, value: str) -> None:
        if value not in MEMORY:
            raise ValueError(f"memory must be one of {MEMORY}, got {value!r}")
        self._memory = value

    @property
    def states(self) -> tuple[torch.Tensor | None, ...]:
        """The potentials u_l after the last step, level by level; None before the first one."""
        return tuple(self._memories[f"u_{level}"] for level in range(self.num_levels))

    def multi_step_forward(self, x_seq: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """All steps: ``[T, N, *]`` to the top level's potentials ``[T, N, *]``."""
        tensors, index, num_steps = inputs_of(x_seq)
        return self._run_and_hold(tensors, index, num_steps)

    def single_step_forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step: ``[N, *]`` to the top level's potential ``[N, *]``."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a tensor [N, *], got {type(x).__name__}")
        return self._run_and_hold([x], [0], 1).squeeze(0)

    def single_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], host.States]:
        """One step over explicit states (u_0, ..., u_{L-1}, steps done), as 2.x calls it."""
        u_top, states = self._run([inputs[0]], [0], 1, states)
        return (u_top.squeeze(0),), states

    def multi_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], host.States]:
        """All steps over explicit states, as 2.x calls it."""
        u_top, states = self._run(*inputs_of(inputs[0]), states)
        return (u_top,), states

    def _run_and_hold(
        self, inputs: list[torch.Tensor], index: list[int] | None, num_steps: int
    ) -> torch.Tensor:
        u_top, states = self._run(inputs, index, num_steps, tuple(self._memories.values()))
        for name, value in zip(self._memories, states, strict=True):
            self._memories[name] = value
        return u_top

    @_disable_dynamo  # torch.compiler.disable, without importing the compiler beforehand
    def _run(
        self,
        inputs: list[torch.Tensor],
        index: list[int] | None,
        num_steps: int,
        states: host.States,
    ) -> tuple[torch.Tensor, host.States]:
        *potentials, steps_done = states
        check_batch(inputs[0] if index is not None else inputs[0][0], potentials[0])
        decays, decay_index = self._decays_of(steps_done, num_steps)
        if self.chunk > 1:
            self._check_batch_statistics()
        call = Call(
            modules=self._modules_of(steps_done, num_steps),
            decay_index=decay_index,
            input_index=index,
            v_threshold=self.v_threshold,
            surrogate_function=self.surrogate_function,
            feedback=self.feedback and self.num_levels > 1,
            chunk=self.chunk,
        )
        if getattr(self.surrogate_function, "spiking", True) is False:
            raise ValueError(
                "surrogate_function must be in spiking mode: the levels exchange spikes, and "
                f"{self.surrogate_function} gives its primitive function"
            )
        if self.memory == "reversible" and torch.is_grad_enabled():
            parameters = call.parameters()
            if gradient_wanted(*inputs, *potentials, *decays, *parameters):
                kept = frozenset(i for i, again in enumerate(self.recompute) if not again)
                options = Options(self.tolerance, self.replay_tolerance, kept)
                u_top, potentials = run_reversibly(
                    call, options, inputs, potentials, decays, parameters
                )
                return u_top, (*potentials, steps_done + num_steps)
        u_top, potentials = roll_out(call, inputs, potentials, decays)
        return u_top, (*potentials, steps_done + num_steps)

    def _modules_of(self, first: int, num_steps: int) -> list[list[nn.Module]]:
        if not self.columns:
            return [list(self.levels)] * num_steps
        self._check_steps("levels", len(self.levels), first, num_steps)
        return [list(self.levels[t]) for t in range(first, first + num_steps)]

    def _decays_of(self, first: int, num_steps: int) -> tuple[list[torch.Tensor], list[list[int]]]:
        """The decays in force, each once, and the place of that of each step and level."""
        rows: list[Any] = [self.decays] * num_steps
        if self.decay_per_step:
            self._check_steps("decays", len(self.decays), first, num_steps)
            rows = list(self.decays)[first : first + num_steps]
        unique = list({id(a): a for row in rows for a in row}.values())
        place = {id(a): i for i, a in enumerate(unique)}
        index = [[place[id(a)] for a in row] for row in rows]
        return [away_from_zero(a, self.min_decay) for a in unique], index

    def _check_steps(self, name: str, available: int, first: int, num_steps: int) -> None:
        if first + num_steps > available:
            raise ValueError(
                f"{name} has entries for {available} steps, but step {first + num_steps} was asked "
                f"for ({first} done since the last reset, {num_steps} in this call); start a new "
                "sequence with functional.reset_net"
            )

    def extra_repr(self) -> str:
        own = (
            f"num_levels={self.num_levels}, v_threshold={self.v_threshold}, memory={self.memory!r}"
        )
        return f"{own}, {super().extra_repr()}"
