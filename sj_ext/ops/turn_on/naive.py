"""The turn-on neuron in plain PyTorch: the twin that every faster form is tested against.

A state of 16-bit inputs is kept in float32; the decay and the input enter it by one rounded product
and one rounded sum a step, never by a fused multiply-add, so that every form fires alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["state_dtype", "turn_on"]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the potential of inputs of ``dtype`` is kept: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def turn_on(
    x_seq: torch.Tensor,
    v_init: torch.Tensor,
    decay: torch.Tensor,
    v_threshold: float,
    surrogate_function: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and potentials, both ``[T, N, *]``: u[t] = decay u[t-1] + x[t], s = H(u - v_th).

    Args:
        x_seq: ``[T, N, *]`` with T of 1 or more.
        v_init: the potential before the first step, ``[N, *]``.
        decay: broadcasts to ``[N, *]``.
        v_threshold: the threshold.
        surrogate_function: H.
    """
    v, potentials = v_init.to(state_dtype(x_seq.dtype)), []
    for x in x_seq.unbind(0):
        v = v * decay + x
        potentials.append(v)
    v_seq = torch.stack(potentials)
    return surrogate_function(v_seq - v_threshold).to(x_seq.dtype), v_seq
