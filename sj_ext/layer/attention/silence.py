"""Gradients where no neuron of an attention fires in a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ...inference import gradient_wanted

__all__ = ["heard"]


class _Heard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(spikes.any())
        return spikes.view_as(spikes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (fired,) = ctx.saved_tensors
        return torch.where(fired, grad, torch.zeros_like(grad))


def heard(spikes: torch.Tensor) -> torch.Tensor:
    r"""The spikes as they are; a batch without any passes no gradient back.

    The map behind a silent population is constant. A batch normalisation has no variance there to
    divide by, and multiplies gradients by :math:`\epsilon^{-1/2} = 316`; three in a row, block
    after block, overflow. Such a gradient says nothing: it is 0 here, and the block learns through
    its shortcut alone.

    Args:
        spikes: of any shape.
    """
    return _Heard.apply(spikes) if gradient_wanted(spikes) else spikes
