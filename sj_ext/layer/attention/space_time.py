"""Ordinary attention, over time and over space in turn: the encoder of Spikeformer."""

from __future__ import annotations

import torch
from torch import nn

from ... import checks, host
from ...arguments import checked
from ..spiking import NeuronFactory, new_neuron
from .matrix_product import MatrixProduct
from .ssa import check_heads

__all__ = ["SoftmaxAttention", "SpaceTimeBlock"]


class SoftmaxAttention(nn.Module):
    """Multi-head attention with softmax, over the last axis but one. It is not spike-driven.

    Args:
        dim: C.
        num_heads: divides C.

    Shapes:
        ``[*, L, C]`` in and out.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.first, self.second = MatrixProduct(), MatrixProduct()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            z.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
            for z in self.qkv(x).chunk(3, -1)
        )
        weights = self.first((q * q.shape[-1] ** -0.5, k.transpose(-2, -1))).softmax(-1)
        return self.proj(self.second((weights, v)).transpose(-2, -3).flatten(-2))


@checked
class SpaceTimeBlock(nn.Module, host.base.MultiStepModule):
    r"""Attention over the steps of a token, over the tokens of a step, and an MLP that spikes.

    .. math::
        z \leftarrow z + W_t\, \mathrm{Attn}_t(\mathrm{LN} z), \qquad
        z \leftarrow z + \mathrm{Attn}_s(\mathrm{LN} z), \qquad
        z \leftarrow z + W_2\, \mathrm{LIF}(W_1 \mathrm{LN} z)

    Only the MLP's neuron spikes. The attention over steps sees all of them, so that the block has
    no step mode ``'s'``.

    Args:
        dim: C.
        num_heads: divides C.
        spiking_neuron: makes the neuron, see :mod:`sj_ext.layer.spiking`.
        mlp_ratio: hidden features, over C.
        drop_path: share of samples whose branches are left out in training.

    Shapes:
        ``[T, N, L, C]`` in and out.

    Raises:
        ValueError: a size or share is out of range.

    Source: Li et al., "Spikeformer" (arXiv 2211.10686).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        mlp_ratio: float = 4,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.step_mode = "m"
        checks.integer("dim", dim, at_least=1)
        hidden = int(dim * checks.number("mlp_ratio", mlp_ratio, above=0))
        self.drop_path = checks.number("drop_path", drop_path, at_least=0, below=1)
        self.temporal_norm, self.spatial_norm, self.mlp_norm = (
            nn.LayerNorm(dim, eps=1e-6) for _ in range(3)
        )
        self.temporal_attn = SoftmaxAttention(dim, num_heads)
        self.temporal_fc = nn.Linear(dim, dim)
        self.spatial_attn = SoftmaxAttention(dim, num_heads)
        self.fc1 = nn.Linear(dim, hidden)
        self.neuron = new_neuron(spiking_neuron)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        over_steps = self.temporal_norm(z).movedim(0, -2)  # [N, L, T, C]
        z = z + self._kept(self.temporal_fc(self.temporal_attn(over_steps)).movedim(-2, 0))
        z = z + self._kept(self.spatial_attn(self.spatial_norm(z)))
        return z + self._kept(self.fc2(self.neuron(self.fc1(self.mlp_norm(z)))))

    def _kept(self, branch: torch.Tensor) -> torch.Tensor:
        """The branch without the samples that are left out, and the others scaled up for them."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = 1 - self.drop_path
        mask = torch.bernoulli(branch.new_full((1, branch.shape[1], 1, 1), kept))
        return branch * mask / kept
