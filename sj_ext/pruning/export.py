"""What a pruned network is exported to: sparse matrices; see :mod:`~sj_ext.pruning.shrinking`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from .layers import is_prunable
from .masks import mask_of, parameter_of
from .sharding import whole

__all__ = ["export_csr"]


@torch.no_grad()
def export_csr(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The pruned layers' weights as sparse CSR matrices.

    Works on masked layers and, after :func:`make_permanent`, on every linear and convolutional
    layer that has zeros.

    Args:
        model: a model with masked layers, or with zeros in its weights.

    Returns:
        Per layer a mapping: ``weight``, a CSR tensor ``[out, in * kernel]``; ``shape``, that of the
        dense weight; ``bias``, a tensor or None. Of a transposed convolution the matrix is
        ``[in, out * kernel]``, as its weight is. The layer's weight is
        ``entry["weight"].to_dense().view(entry["shape"])``. Kept weights that
        happen to be zero are not stored.

    Raises:
        ValueError: no layer has zeros.
    """
    entries = {}
    for name, module in model.named_modules():
        if not is_prunable(module):
            continue
        weight = whole(parameter_of(module).detach())
        mask = mask_of(module)
        if mask is not None and mask.closed:
            weight = weight * mask.mask
        if mask is None and bool(weight.all()):
            continue
        bias = None if module.bias is None else module.bias.detach().clone()
        entries[name] = {
            "weight": _csr(weight.flatten(1)),
            "shape": tuple(weight.shape),
            "bias": bias,
        }
    if not entries:
        raise ValueError("model has no layer with zeros to export")
    return entries


def _csr(matrix: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():  # PyTorch says once in a process that they are new
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()
