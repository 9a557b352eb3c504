"""The orthonormal Haar matrix, which wavelet mixers multiply with."""

from __future__ import annotations

import functools

import torch

from .. import checks

__all__ = ["haar_matrix"]


def haar_matrix(size: int) -> torch.Tensor:
    r"""The Haar matrix H of a power of two, with orthonormal rows, in float32.

    .. math::
        H_1 = (1), \qquad H_n \propto \binom{H_{n/2} \otimes (1, 1)}{I \otimes (1, -1)}

    with every row divided by its norm. A neuron behind it meets exact ties, so that the matrix is
    rounded to float32 once and multiplied with as it is, instead of being applied in steps.

    Args:
        size: n, a power of two.

    Returns:
        ``[n, n]``.

    Raises:
        ValueError: ``size`` is no power of two.
    """
    if checks.integer("size", size, at_least=1) & (size - 1):
        raise ValueError(f"size must be a power of two, got {size}")
    return _matrix(size).clone()


@functools.cache
def _matrix(size: int) -> torch.Tensor:
    rows = torch.ones(1, 1, dtype=torch.float64)
    while len(rows) < size:
        details = torch.eye(len(rows), dtype=torch.float64)
        rows = torch.cat(
            [
                torch.kron(rows, torch.tensor([[1.0, 1.0]], dtype=torch.float64)),
                torch.kron(details, torch.tensor([[1.0, -1.0]], dtype=torch.float64)),
            ]
        )
    return (rows / rows.norm(dim=1, keepdim=True)).float()
