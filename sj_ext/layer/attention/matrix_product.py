"""A product of two matrices as a module, so that what counts operations can see both."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["MatrixProduct"]


class MatrixProduct(nn.Module):
    """The product of a pair of matrices, :math:`A B`, without any parameter.

    Attentions multiply through it, so that :func:`sj_ext.analysis.synaptic_operations` counts their
    products beside the layers'. Under autocast it keeps the precision of its operands: sums of
    spikes stay exact.

    Shapes:
        a pair ``[*, n, m]`` and ``[*, m, p]`` to ``[*, n, p]``.
    """

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        a, b = pair
        with torch.autocast(a.device.type, enabled=False):
            dtype = torch.promote_types(a.dtype, b.dtype)
            return a.to(dtype) @ b.to(dtype)
