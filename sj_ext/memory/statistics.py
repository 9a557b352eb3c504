r"""Batch normalisation whose batch comes in slices.

With the mean m and the biased variance v of each channel over all slices, n elements a channel,
:math:`\hat z = (z - m) / \sqrt{v + \epsilon}` and :math:`y = \gamma \hat z + \beta`,

.. math::
    \nabla\beta = \sum \nabla y, \qquad \nabla\gamma = \sum \nabla y\, \hat z, \qquad
    \nabla z = \frac{\gamma}{\sqrt{v + \epsilon}}
    \left(\nabla y - \frac{\nabla\beta}{n} - \hat z \frac{\nabla\gamma}{n}\right),

so that a slice needs nothing of the others but the two sums. Sums run in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import batch_norm

__all__ = ["BatchStatistics", "GradientSums", "StatisticsSums", "update_running"]

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class BatchStatistics:
    """Mean and biased variance of each channel, and over how many elements."""

    mean: torch.Tensor
    var: torch.Tensor
    count: int

    def normalise(self, norm: BatchNorm, z: torch.Tensor) -> torch.Tensor:
        """``norm`` of ``z`` ``[N, C, *]`` with these statistics."""
        return batch_norm(z, self.mean, self.var, norm.weight, norm.bias, False, 0.0, norm.eps)

    def standardise(self, norm: BatchNorm, z: torch.Tensor) -> torch.Tensor:
        """``z`` with mean 0 and variance 1, as ``norm`` has it before scale and shift."""
        return batch_norm(z, self.mean, self.var, None, None, False, 0.0, norm.eps)

    def grad_input(
        self, norm: BatchNorm, grad: torch.Tensor, standardised: torch.Tensor, sums: GradientSums
    ) -> torch.Tensor:
        """The gradient of the input of ``norm`` from that of its output; the module's equation."""
        scale = torch.rsqrt(self.var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shape = [1, -1] + [1] * (grad.dim() - 2)
        shift = (sums.grad / self.count).to(scale.dtype).view(shape)
        slope = (sums.product / self.count).to(scale.dtype).view(shape)
        centred = grad - shift - standardised * slope
        return (centred * scale.view(shape)).to(grad.dtype)


class StatisticsSums:
    """Sums over slices that give :class:`BatchStatistics`."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None

    def add(self, z: torch.Tensor) -> None:
        """Count a slice ``[N, C, *]`` in."""
        axes = [axis for axis in range(z.dim()) if axis != 1]
        count = z.numel() // z.shape[1]
        pivot = z.mean(axes, dtype=torch.float32 if z.dtype.itemsize < 4 else z.dtype)
        rest = z - pivot.view([1, -1] + [1] * (z.dim() - 2))
        shift = rest.sum(axes, dtype=torch.float64) / count
        mean = pivot.double() + shift
        squares = rest.square_().sum(axes, dtype=torch.float64) - count * shift.square()
        if self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count, mean, squares
            return
        apart = mean - self._mean  # Chan, Golub, LeVeque: statistics of two parts together
        total = self._count + count
        self._squares += squares + apart.square() * (self._count * count / total)
        self._mean += apart * (count / total)
        self._count = total

    def result(self, dtype: torch.dtype) -> BatchStatistics:
        """The statistics of all slices in the dtype that the norm computes with."""
        assert self._mean is not None and self._squares is not None  # there is a slice
        var = self._squares / self._count
        return BatchStatistics(self._mean.to(dtype), var.to(dtype), self._count)


class GradientSums:
    """Sums over slices of a gradient and of its product with the standardised input."""

    def __init__(self) -> None:
        self.grad: Any = 0.0
        self.product: Any = 0.0

    def add(self, grad: torch.Tensor, standardised: torch.Tensor) -> None:
        """Count a slice ``[N, C, *]`` in."""
        axes = [axis for axis in range(grad.dim()) if axis != 1]
        self.grad = self.grad + grad.sum(axes, dtype=torch.float64)
        self.product = self.product + (grad * standardised).sum(axes, dtype=torch.float64)


def update_running(norm: BatchNorm, batch: BatchStatistics, times: int = 1) -> None:
    """Move the running statistics of ``norm`` by one batch, as its own forward pass would.

    Args:
        norm: the module.
        batch: what was counted.
        times: how often it would have seen every element that was counted once.
    """
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    factor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            factor = 1.0 / float(norm.num_batches_tracked)
    count = batch.count * times
    unbiased = batch.var * (count / (count - 1))
    norm.running_mean.mul_(1 - factor).add_(batch.mean, alpha=factor)
    norm.running_var.mul_(1 - factor).add_(unbiased, alpha=factor)
