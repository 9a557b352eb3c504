"""Step function of the multi-level firing neuron."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .. import checks
from ..arguments import checked
from ..inference import fire

__all__ = ["firing_step", "multi_level_firing_step"]


@checked
def multi_level_firing_step(
    x: torch.Tensor,
    v: torch.Tensor,
    tau: float,
    decay_input: bool,
    thresholds: Sequence[float],
    v_reset: float | None,
    surrogate_function: Callable[[torch.Tensor], torch.Tensor],
    detach_reset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""One step of K LIF levels that share an input and fire at rising thresholds.

    .. math::
        H_k = V_k + (X - (V_k - V_{reset})) / \tau, \quad S_k = \Theta(H_k - v_k), \quad
        S = \sum_k S_k

    (``decay_input=False``: :math:`H_k = V_k - (V_k - V_{reset}) / \tau + X`); every level is reset
    by its own spike, to ``v_reset`` or, if that is ``None``, by subtracting :math:`v_k`.

    Args:
        x: input current, ``[N, *]``.
        v: potentials of the levels, ``[K, N, *]``.
        tau: membrane time constant, in steps.
        decay_input: whether the input is divided by ``tau``.
        thresholds: :math:`v_1 < \dots < v_K`.
        v_reset: reset potential; ``None`` for the soft reset.
        surrogate_function: step of ``H_k - v_k``.
        detach_reset: keep the reset out of the gradient.

    Returns:
        The number of spikes, ``[N, *]``, and the potentials after the step, ``[K, N, *]``.

    Raises:
        TypeError, ValueError: a value that is no number, tensor or function where one belongs.
        RuntimeError: from PyTorch, where the shapes of ``x``, ``v`` and ``thresholds`` do not go
            together.

    Source: Feng et al., "Multi-Level Firing with Spiking DS-ResNet", IJCAI 2022.
    """
    checks.function("surrogate_function", surrogate_function)
    step = (tau, decay_input, checks.numbers("thresholds", thresholds), v_reset)
    return firing_step(x, v, *step, surrogate_function, detach_reset)


def firing_step(
    x: torch.Tensor,
    v: torch.Tensor,
    tau: float,
    decay_input: bool,
    thresholds: Sequence[float],
    v_reset: float | None,
    surrogate_function: Callable[[torch.Tensor], torch.Tensor],
    detach_reset: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`multi_level_firing_step`, for a neuron, whose values are checked already."""
    rest = 0.0 if v_reset is None else v_reset
    h = v + (x - (v - rest)) / tau if decay_input else v - (v - rest) / tau + x
    levels = torch.tensor(thresholds, dtype=h.dtype, device=h.device)
    levels = levels.view(-1, *[1] * x.dim())
    spikes = fire(surrogate_function, h - levels)
    gate = spikes.detach() if detach_reset else spikes
    v = h - gate * levels if v_reset is None else gate * v_reset + (1.0 - gate) * h
    return spikes.sum(0), v
