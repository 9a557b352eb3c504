"""Multi-level firing: one neuron that sends the sum of several thresholds' spikes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from .. import checks, host
from ..arguments import checked
from ..functional.multi_level import firing_step
from ..surrogate import Rect

__all__ = ["MultiLevelFiringNode"]


@checked
class MultiLevelFiringNode(host.FunctionalNode):
    r"""LIF levels with rising thresholds; the output is the number of levels that fire.

    .. math::
        H_k[t] = V_k[t-1] + (X[t] - (V_k[t-1] - V_{reset})) / \tau, \quad
        S[t] = \sum_{k=1}^{K} \Theta(H_k[t] - v_k)

    The rectangular window of a level lies around its own threshold, so that together they cover a
    wider range of potentials than one neuron's.

    Args:
        tau: membrane time constant, in steps.
        decay_input: whether the input is divided by ``tau``.
        v_threshold: threshold of the first level where ``thresholds`` are not given.
        v_reset: reset potential; ``None`` for the soft reset.
        surrogate_function: step of :math:`H_k - v_k`.
        detach_reset: keep the reset out of the gradient.
        step_mode: ``'s'`` or ``'m'``.
        store_v_seq: keep the potentials of all steps in ``v_seq``.
        thresholds: :math:`v_1 < \dots < v_K`, in units of the potential; they take the place of
            ``v_threshold``. The default is ``v_threshold`` and the two levels 1 and 2 above it.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``; the memory ``v`` is
        ``[K, N, *]``, ``v_seq`` ``[T, K, N, *]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``tau`` is not above 1, or ``thresholds`` are empty or do not rise.

    Source: Feng et al., "Multi-Level Firing with Spiking DS-ResNet", IJCAI 2022.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[torch.Tensor], torch.Tensor] = Rect(),  # noqa: B008
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        thresholds: Sequence[float] | None = None,
    ):
        tau = checks.number("tau", tau, above=1)
        checks.flag("decay_input", decay_input)
        checks.surrogate(surrogate_function)
        if v_reset is not None:
            v_reset = checks.number("v_reset", v_reset)
        if thresholds is None:
            first = checks.number("v_threshold", v_threshold)
            thresholds = (first, first + 1.0, first + 2.0)
        thresholds = checks.numbers("thresholds", thresholds)
        if not all(low < high for low, high in pairwise(thresholds)):
            raise ValueError(f"thresholds must be one or more rising numbers, got {thresholds}")
        super().__init__(
            v_threshold=thresholds[0],
            v_reset=v_reset,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.tau = tau
        self.decay_input = decay_input
        self.thresholds = thresholds

    def materialize_states(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, step_mode: str
    ) -> host.States:
        """One potential per level, each from the same initial potential."""
        if step_mode == "m" and not len(inputs[0]):  # no step: the states stay as they are
            return states
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        (v,) = states
        if isinstance(v, torch.Tensor) and v.shape == (len(self.thresholds), *x.shape):
            return (v.to(x),)
        (v,) = super().materialize_states(inputs, (v,), step_mode)
        return (v.expand(len(self.thresholds), *v.shape),)

    def step(self, x: torch.Tensor, states: host.States) -> tuple[torch.Tensor, host.States]:
        """One step; see :func:`sj_ext.functional.multi_level_firing_step`."""
        checks.floating(f"the input of {type(self).__name__}", x)
        spikes, v = firing_step(
            x,
            states[0],
            self.tau,
            self.decay_input,
            self.thresholds,
            self.v_reset,
            self.surrogate_function,
            self.detach_reset,
        )
        return spikes, (v,)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}, thresholds={self.thresholds}"
