"""The integrate-and-fire neuron that fires in both directions, at thresholds of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import checks, host
from ..arguments import checked
from ..inference import fire

__all__ = ["NegIFNode"]

#: how far below its negative threshold a potential must be
MARGIN = 1e-3


@checked
class NegIFNode(host.FunctionalNode):
    r"""Integrate-and-fire with a positive and a negative threshold, which may differ.

    .. math::
        h[t] = v[t-1] + x[t], \quad s^+ = H(h - \theta^+), \quad
        s^- = H(-h - \theta^- - 10^{-3}), \quad s = s^+ - s^-

    The hard reset is :math:`v = (1 - |s|) h + s\, v_{reset}`, the soft one
    :math:`v = h - \theta^+ s^+ + \theta^- s^-`.

    Args:
        v_threshold: :math:`\theta^+`.
        neg_v_threshold: :math:`\theta^-`, as a positive number.
        v_reset: potential after a spike, None for the soft reset.
        surrogate_function: for both thresholds; the host's ``Sigmoid(alpha=4)`` by default.
        detach_reset: whether the reset carries no gradient.
        step_mode: ``'s'`` or ``'m'``.
        store_v_seq: whether to keep the potentials of all steps in ``v_seq``.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in ``'m'``; the same out, of -1, 0 and 1.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a threshold is not above 0.

    Source: Fang et al., "Spiking Wavelet Transformer", ECCV 2024 (arXiv 2403.11138). Its program
    subtracts at the soft reset after a negative spike, which drives the potential on; this adds.
    """

    def __init__(
        self,
        v_threshold: float = 1.0,
        neg_v_threshold: float = 0.5,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[..., torch.Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
    ):
        checks.number("v_threshold", v_threshold, above=0)
        super().__init__(
            v_threshold=v_threshold,
            v_reset=v_reset if v_reset is None else checks.number("v_reset", v_reset),
            surrogate_function=(
                host.surrogate.Sigmoid(alpha=4.0)
                if surrogate_function is None
                else checks.surrogate(surrogate_function)
            ),
            detach_reset=detach_reset,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.neg_v_threshold = checks.number("neg_v_threshold", neg_v_threshold, above=0)

    def step(
        self, x: torch.Tensor, states: tuple[Any, ...]
    ) -> tuple[torch.Tensor, tuple[Any, ...]]:
        """The signed spikes of one step, and the potential after it."""
        checks.floating(f"the input of {type(self).__name__}", x)
        potential = states[0] + x
        above = fire(self.surrogate_function, potential - self.v_threshold)
        below = fire(self.surrogate_function, -(potential + self.neg_v_threshold + MARGIN))
        spike = above - below
        up, down = (above.detach(), below.detach()) if self.detach_reset else (above, below)
        if self.v_reset is None:
            after = potential - self.v_threshold * up + self.neg_v_threshold * down
        else:
            signed = up - down
            after = (1 - signed.abs()) * potential + signed * self.v_reset
        return spike, (after,)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, neg_v_threshold={self.neg_v_threshold}"
