"""Reversible blocks in depth, the peer of reversibility in time.

Two streams: y1 = x1 + F(x2), y2 = x2 + G(y1), which is undone by x2 = y2 - G(y1), x1 = y1 - F(x2).
All blocks are one autograd function, which keeps the output of the last block and nothing else; F
and G see whole sequences.

Source: Zhang and Zhang, "Memory-efficient reversible spiking neural networks", AAAI 2024
(arXiv 2312.07922), after Gomez et al., "The reversible residual network", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sj_ext import host


class DepthReversible(nn.Module):
    """Blocks of (F, G) on two halves of the channels of ``[T, N, C, *]``."""

    def __init__(self, blocks: Sequence[tuple[nn.Module, nn.Module]]):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return _Undone.apply(self.blocks, x_seq, *parameters)


class _Undone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blocks, x_seq, *parameters):
        ctx.blocks, ctx.parameters = blocks, parameters
        x1, x2 = x_seq.chunk(2, dim=2)
        for f, g in blocks:
            x1 = x1 + _run(f, x2)
            x2 = x2 + _run(g, x1)
        out = torch.cat([x1, x2], dim=2)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        y1, y2 = out.chunk(2, dim=2)
        g1, g2 = grad.chunk(2, dim=2)
        found: dict[nn.Parameter, torch.Tensor] = {}
        for f, g in reversed(ctx.blocks):
            y2, into = _undo(g, y1, y2, g2, found)
            g1 = g1 + into
            y1, into = _undo(f, y2, y1, g1, found)
            g2 = g2 + into
        return None, torch.cat([g1, g2], dim=2), *(found.get(p) for p in ctx.parameters)


def _run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    host.functional.reset_net(module)
    out = module(x)
    host.functional.reset_net(module)
    return out


def _undo(module, x, y, grad, found) -> tuple[torch.Tensor, torch.Tensor]:
    """From y = before + module(x) to ``before``, and the gradient of x by way of the module."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = _run(module, x)
    before = y - out.detach()
    parameters = [p for p in module.parameters() if p.requires_grad]
    into, *own = torch.autograd.grad(out, [x, *parameters], grad)
    found.update(zip(parameters, own, strict=True))
    return before, into
