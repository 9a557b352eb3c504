"""How often an exact potential is kept, so that inversion rebuilds the others well enough."""

from __future__ import annotations

import torch

__all__ = ["anchor_steps"]


def anchor_steps(
    last: int, smallest_decay: float, dtype: torch.dtype, tolerance: float
) -> frozenset[int]:
    """Steps whose potential is kept exactly, so that inversion rebuilds the others well enough.

    With unit roundoff e, potentials of at most M and a decay of magnitude a, j inversions
    u[t-1] = (u[t] - f[t]) / a from an exact potential leave an error of at most

        e M (1 + 3 a) (a^-1 + ... + a^-j),

    see ``docs/concepts/reversibility.md``. Steps ``last, last - K, last - 2 K, ...`` are kept, with
    the largest K for which K - 1 inversions stay within ``tolerance * M``.
    """
    roundoff = torch.finfo(dtype).eps / 2
    error, power, inversions = 0.0, 1.0, 0
    while inversions < last:
        power /= smallest_decay
        error += roundoff * (1 + 3 * smallest_decay) * power
        if not error <= tolerance:
            break
        inversions += 1
    return frozenset(range(last, -1, -(inversions + 1)))
