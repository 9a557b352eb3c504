"""A block: branches one after the other, each with a shortcut past it."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks

__all__ = ["ResidualBlock"]


class ResidualBlock(nn.Module):
    r"""Branches with a shortcut past each: :math:`x \leftarrow x + F_i(x)`, one after the other.

    What flows past is what the branches give: the real membrane potentials of branches that begin
    with a neuron (membrane shortcut), or whole numbers, sums of the spikes of branches that end
    with one (spike-element-wise shortcut).

    Args:
        join: ``'add'``, or ``'iand'`` for spikes that stay spikes: :math:`x (1 - F(x))`.
        **branches: the branches by name, in their order; ``attn`` and ``mlp`` make a transformer
            block.

    Shapes:
        What the branches take, ``[T, N, C, H, W]`` in step mode ``'m'``; the same out.

    Raises:
        ValueError: no branch is given, or ``join`` is unknown.
    """

    def __init__(self, *, join: str = "add", **branches: nn.Module):
        super().__init__()
        if not branches:
            raise ValueError("branches must hold at least one module, got none")
        self.join = checks.choice("join", join, ("add", "iand"))
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for branch in self.children():
            x = x + branch(x) if self.join == "add" else x * (1 - branch(x))
        return x

    def extra_repr(self) -> str:
        return f"join={self.join!r}"
