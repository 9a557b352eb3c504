"""The orthonormal Haar matrix, which wavelet mixers multiply with."""

from __future__ import annotations

import functools

import numpy as np
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
    return torch.from_numpy(_matrix(size).copy())


@functools.cache
def _matrix(size: int) -> np.ndarray:
    """In NumPy: a tensor that is kept would be fake, or meta, where the first caller was."""
    rows = np.ones((1, 1))
    while len(rows) < size:
        sums, details = np.array([[1.0, 1.0]]), np.array([[1.0, -1.0]])
        rows = np.concatenate((np.kron(rows, sums), np.kron(np.eye(len(rows)), details)))
    return (rows / np.sqrt((rows * rows).sum(1, keepdims=True))).astype(np.float32)
