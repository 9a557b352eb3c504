r"""The arithmetic of the cell, which plain autograd and the undoing pass share.

One call runs T steps of L levels,

.. math::
    u_l[t] = a_l u_l[t-1] + F_l(s_{l-1}[t], s_{l+1}[t-1]), \qquad s_l[t] = H(u_l[t] - v_{th}),

from the first step to the last and from the lowest level to the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ...inference import fire
from .randomness import Draws, Start

__all__ = ["Call", "integrate", "roll_out"]


@dataclass
class Call:
    """What one call of the cell runs, without any tensor that a gradient flows to."""

    #: modules[t][l] is F_l of step t
    modules: list[list[nn.Module]]
    #: decay_index[t][l] is the place of a_l of step t among the decays
    decay_index: list[list[int]]
    #: step t reads inputs[input_index[t]]; None: it reads inputs[0][t]
    input_index: list[int] | None
    v_threshold: float
    surrogate_function: Callable[[torch.Tensor], torch.Tensor]
    #: whether a level sees the spikes that the next higher level fired one step earlier
    feedback: bool = True
    #: consecutive steps that a level runs as one batch; more than one only without feedback
    chunk: int = 1

    def __post_init__(self) -> None:
        steps = range(len(self.modules))
        self.num_levels = len(self.modules[0])
        #: the steps, as many at a time as a level runs as one batch
        self.spans = [steps[t : t + self.chunk] for t in steps[:: self.chunk]]

    @property
    def num_steps(self) -> int:
        return len(self.modules)

    def before(self, span: range) -> range | None:
        """The span before this one; None for the state that the call starts from."""
        return self.span_of(span.start - 1) if span.start else None

    def after(self, span: range | None) -> range | None:
        """The span that comes next, None behind the last one."""
        done = 0 if span is None else span.stop
        return self.span_of(done) if done < self.num_steps else None

    def span_of(self, t: int) -> range:
        """The span that a step is part of."""
        return self.spans[t // self.chunk]

    def module(self, span: range, level: int) -> nn.Module:
        """F_level over a span."""
        return self.modules[span.start][level]

    def decay(self, t: int, level: int) -> int:
        """The place of a_level of step t among the decays."""
        return self.decay_index[t][level]

    def input_of(self, inputs: Sequence[torch.Tensor], span: range) -> torch.Tensor:
        """x over the steps of a span, as one batch."""
        if len(span) == 1:
            t = span[0]
            return inputs[0][t] if self.input_index is None else inputs[self.input_index[t]]
        if self.input_index is None:
            return inputs[0][span.start : span.stop].flatten(0, 1)
        return torch.cat([inputs[self.input_index[t]] for t in span])

    def inputs_read(self, span: range) -> list[int]:
        """Places of the input tensors that a span reads."""
        return [0] if self.input_index is None else [self.input_index[t] for t in span]

    def fire(self, u: torch.Tensor) -> torch.Tensor:
        """H(u - v_th), with the surrogate's gradient."""
        return fire(self.surrogate_function, u - self.v_threshold)

    def surrogate_parameters(self) -> list[nn.Parameter]:
        """Learnable constants of the surrogate."""
        function = self.surrogate_function
        return list(function.parameters()) if isinstance(function, nn.Module) else []

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the modules and of the surrogate, each once."""
        modules = dict.fromkeys(module for column in self.modules for module in column)
        own = (p for module in modules for p in module.parameters())
        return list({id(p): p for p in (*own, *self.surrogate_parameters())}.values())

    def has_consumer(self, span: range | None, level: int) -> bool:
        """Whether a level reads the spikes of a span; None is the state before the call."""
        below = span is not None and level + 1 < self.num_levels
        above = self.feedback and level >= 1 and self.after(span) is not None
        return below or above


class Observer:
    """Sees what :func:`roll_out` computes; the default looks at nothing."""

    def run(
        self,
        call: Call,
        span: range,
        level: int,
        below: torch.Tensor,
        above: torch.Tensor | None,
    ) -> torch.Tensor:
        """F_level over a span."""
        return run_level(call, span, level, below, above)

    def ran(
        self, span: range, level: int, f: torch.Tensor, u: Sequence[torch.Tensor], start: Start
    ) -> None:
        """F_level gave f over a span, and the potentials after its steps are u.

        ``start`` is what its random numbers started from, see :class:`~.randomness.Draws`.
        """

    def fired(self, span: range, level: int, u: torch.Tensor, spikes: torch.Tensor) -> None:
        """The spikes of the potentials u of a span; asked for only where a level reads them."""


def roll_out(
    call: Call,
    inputs: Sequence[torch.Tensor],
    states: Sequence[torch.Tensor | None],
    decays: Sequence[torch.Tensor],
    observer: Observer | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All steps of all levels.

    Returns:
        The potentials of the top level ``[T, N, *]`` and those of every level after the last step.
    """
    training = observer is not None or torch.is_grad_enabled()
    observer = observer or Observer()
    draws = Draws(inputs[0].device, alone=training)
    top = call.num_levels - 1
    u: list[Any] = list(states)
    spikes: list[Any] = [None] * call.num_levels
    for level in range(1, call.num_levels):
        if u[level] is not None and call.has_consumer(None, level):
            spikes[level] = call.fire(u[level])
    u_top = []
    for span in call.spans:
        for level in range(call.num_levels):
            below = call.input_of(inputs, span) if level == 0 else spikes[level - 1]
            above = spikes[level + 1] if call.feedback and level < top else None
            f, start = draws.run(level, partial(observer.run, call, span, level, below, above))
            potentials = []
            for t, f_t in zip(span, split(f, span, level), strict=True):
                decay = decays[call.decay(t, level)]
                u[level] = integrate(f_t, u[level], decay, t, level)
                potentials.append(u[level])
            observer.ran(span, level, f, potentials, start)
            if level == top:
                u_top += potentials
            spikes[level] = None
            if call.has_consumer(span, level):
                together = joined(potentials)
                spikes[level] = call.fire(together)
                observer.fired(span, level, together, spikes[level])
                del together
            del below, above, f, f_t, potentials
    return torch.stack(u_top), u


def split(batch: torch.Tensor, span: range, level: int = 0) -> Sequence[torch.Tensor]:
    """The steps of a batch over a span."""
    if len(span) == 1:
        return [batch]
    if batch.dim() == 0 or len(batch) % len(span):
        raise ValueError(
            f"levels: level {level} must return one entry per entry of its batch of {len(span)} "
            f"steps, got shape {list(batch.shape)}"
        )
    return batch.unflatten(0, (len(span), -1)).unbind(0)


def joined(steps: Sequence[torch.Tensor]) -> torch.Tensor:
    """One batch of the steps of a span."""
    return steps[0] if len(steps) == 1 else torch.cat(tuple(steps))


def run_level(
    call: Call, span: range, level: int, below: torch.Tensor, above: torch.Tensor | None
) -> torch.Tensor:
    """F_level(below, above) over a span, with its contract checked.

    Raises:
        TypeError: the level does not return a floating point tensor.
        RuntimeError: the level changed one of its inputs in place.
    """
    t = span[0]
    module = call.module(span, level)
    versions = _versions(below, above)
    f = module(below, above)
    if not isinstance(f, torch.Tensor) or not f.is_floating_point():
        what = f.dtype if isinstance(f, torch.Tensor) else type(f).__name__
        raise TypeError(
            f"levels: level {level} ({type(module).__name__}) must return a floating point tensor "
            f"at every step, got {what} at step {t}"
        )
    if _versions(below, above) != versions:
        raise RuntimeError(
            f"levels: level {level} ({type(module).__name__}) changed one of its inputs in place "
            f"at step {t}; other levels read the same spikes, so a level must leave them as they "
            "are (look for inplace=True)"
        )
    return f


def integrate(
    f: torch.Tensor, u: torch.Tensor | None, decay: torch.Tensor, t: int, level: int
) -> torch.Tensor:
    """a u + f, always a new tensor.

    Raises:
        ValueError: f does not have the shape of u, or the decay does not broadcast to it.
    """
    dtype = torch.promote_types(f.dtype, decay.dtype)
    if not broadcasts_to(decay.shape, f.shape):
        raise ValueError(
            f"decays: the decay of level {level} has shape {list(decay.shape)}, which does not "
            f"broadcast to the potential's shape {list(f.shape)}"
        )
    if u is None:
        # The potential before the first step is 0. A learned decay still takes part, with gradient
        # 0: no parameter goes without a gradient, which optimisers and DDP would have to know.
        return f.to(dtype) + 0 * decay if decay.requires_grad else f.to(dtype, copy=True)
    if u.shape != f.shape:
        raise ValueError(
            f"levels: level {level} returned shape {list(f.shape)} at step {t}, but its state has "
            f"shape {list(u.shape)}; a level's output keeps its shape over time, and a new batch "
            "size or resolution needs functional.reset_net first"
        )
    return torch.addcmul(f.to(dtype), decay, u)


def broadcasts_to(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether ``shape`` broadcasts to exactly ``target``."""
    if len(shape) > len(target):
        return False
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return all(size in (1, wanted) for size, wanted in pairs)


def _versions(*tensors: torch.Tensor | None) -> list[int | None]:
    # Inference tensors count no versions; nothing is undone there either.
    return [None if x is None or x.is_inference() else x._version for x in tensors]
