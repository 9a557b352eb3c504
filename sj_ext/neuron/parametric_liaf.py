r"""A leaky neuron with a learnable time constant that passes its potential on, not its spikes.

.. math::
    h[t] = v[t-1] + \sigma(w)\,(x[t] - (v[t-1] - v_{reset})), \qquad
    s[t] = \Theta(h[t] - v_{th}), \qquad
    y[t] = \max(h[t], 0)

Spikes only reset the potential: :math:`v[t] = (1 - s[t])\,h[t] + s[t]\,v_{reset}`, or
:math:`h[t] - v_{th} s[t]` without a reset value.

Source: the neuron of Spikeformer for ImageNet (arXiv 2211.10686), after Wu et al., "LIAF-Net"
(arXiv 2011.06176).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from ..inference import fire

__all__ = ["ParametricLIAFNode"]


@checked
class ParametricLIAFNode(host.FunctionalNode):
    r"""Leaky integrate-and-analog-fire with a learnable time constant :math:`1 / \sigma(w)`.

    Its output is graded, :math:`\max(h, 0)` of the potential h before the reset; what reads it
    multiplies. With ``detach_reset`` the surrogate never enters a gradient.

    Args:
        init_tau: first time constant, above 1.
        v_threshold: potential at which it resets.
        v_reset: potential after a spike; None subtracts the threshold.
        surrogate_function: stands for the step's derivative in the reset.
        detach_reset: whether the reset carries no gradient.
        step_mode: ``'s'`` or ``'m'``.
        backend: ``'torch'``.
        store_v_seq: whether the potentials of every step are kept, in step mode ``'m'``.

    Shapes:
        ``[T, N, *]`` in step mode ``'m'``, ``[N, *]`` in ``'s'``; the same out.

    Attributes:
        w: the learnable scalar.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``init_tau`` is not above 1, or a name is unknown.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[..., Any] = host.surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ):
        checks.number("init_tau", init_tau, above=1)
        super().__init__(
            checks.number("v_threshold", v_threshold),
            v_reset if v_reset is None else checks.number("v_reset", v_reset),
            checks.surrogate(surrogate_function),
            checks.flag("detach_reset", detach_reset),
            step_mode,
            backend,
            store_v_seq,
        )
        self.init_tau = init_tau
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1.0)))

    def step(
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        checks.floating(f"the input of {type(self).__name__}", x)
        (v,) = states
        rest = 0.0 if self.v_reset is None else self.v_reset
        h = v + (x - (v - rest)) * self.w.sigmoid()
        spike = fire(self.surrogate_function, h - self.v_threshold)
        if self.detach_reset:
            spike = spike.detach()
        if self.v_reset is None:
            after = h - self.v_threshold * spike
        else:
            after = (1 - spike) * h + spike * self.v_reset
        return h.relu(), (after,)
