r"""Attention with memory in its projections, neurons of learned time constants and denoising.

.. math::
    p[t] = \mathrm{PLIF}_p\Big(B \sum_{m=0}^{M-1} W_p^{(m)} s[t - m]\Big), \quad p \in \{q, k, v\},
    \qquad D(A) = A\,[A \ge u], \qquad
    y = \mathrm{PLIF}(B W_o\, \mathrm{PLIF}_{1/2}(c\, D(q k^T) v))

There is no public program; the window of M steps, the place of each neuron and the denoising are
this package's reading of Xu et al., "DISTA: Denoising Spiking Transformer with Intrinsic Plasticity
and Spatiotemporal Attention" (arXiv 2311.09376), whose equations were not available.
"""

from __future__ import annotations

import torch
from torch import nn

from ... import checks, host
from ...arguments import checked
from ..conv_bn import ConvBN
from ..spiking import NeuronFactory, lif, new_neuron
from .matrix_product import MatrixProduct
from .ssa import check_heads

__all__ = ["DISTAttention", "WindowedConvBN"]


class WindowedConvBN(host.base.MemoryModule):
    """A 1 x 1 map of the last few steps, each with weights of its own, and a norm.

    Args:
        channels: C, in and out.
        window: number of steps M; before the first one there is nothing.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, which begins without a past, ``[N, C, H, W]`` in
        ``'s'``; the same out.

    Raises:
        ValueError: a size is below 1.
    """

    past: list[torch.Tensor] | None

    def __init__(self, channels: int, window: int = 1):
        super().__init__()
        checks.integer("channels", channels, at_least=1)
        self.window = checks.integer("window", window, at_least=1)
        self.weight = nn.Parameter(torch.empty(window, channels, channels))
        for matrix in self.weight:
            nn.init.kaiming_uniform_(matrix, a=5**0.5)
        self.bn = host.layer.BatchNorm2d(channels)
        self.product = MatrixProduct()
        self.register_memory("past", None)

    def single_step_forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step, which is remembered for the next ones."""
        steps = [x, *(self.past or [])][: self.window]
        self.past = steps
        y = sum(
            self._mapped(matrix, step) for matrix, step in zip(self.weight, steps, strict=False)
        )
        return self.bn(y)

    def multi_step_forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        """All steps of a sequence."""
        y = self._mapped(self.weight[0], x_seq)
        for lag in range(1, min(self.window, len(x_seq))):
            late = self._mapped(self.weight[lag], x_seq[:-lag])
            y = y + torch.cat([torch.zeros_like(y[:lag]), late])
        return self.bn(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.step_mode == "m":
            return self.multi_step_forward(x)
        return self.single_step_forward(x)

    def _mapped(self, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.product((matrix, x.flatten(-2))).view_as(x)


@checked
class DISTAttention(nn.Module):
    """Spiking self-attention with a window of steps, intrinsic plasticity and denoising.

    Args:
        dim: C.
        num_heads: divides C.
        spiking_neuron: makes the neurons; by default parametric leaky ones, whose time constant is
            learned (intrinsic plasticity).
        window: steps that queries, keys and values are made of.
        denoise: u, below which an entry of the attention map counts as 0; 0 for none.
        scale: c.
        v_threshold: of the neuron that fires on the product.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out, spikes.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or a number is out of range.

    Source: a reading of arXiv 2311.09376, see the module.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        window: int = 2,
        denoise: float = 0.0,
        scale: float = 0.125,
        v_threshold: float = 0.5,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        neuron = spiking_neuron or lif(node=host.neuron.ParametricLIFNode)
        self.num_heads = num_heads
        self.denoise = checks.number("denoise", denoise, at_least=0)
        self.scale = checks.number("scale", scale)
        self.q, self.k, self.v = (WindowedConvBN(dim, window) for _ in range(3))
        self.neuron_q, self.neuron_k, self.neuron_v = (new_neuron(neuron) for _ in range(3))
        self.first, self.second = MatrixProduct(), MatrixProduct()
        self.neuron_attn = new_neuron(neuron, v_threshold)
        self.proj = ConvBN(dim, dim, bias=True)
        self.neuron_out = new_neuron(neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.neuron_q(self.q(x)), self.neuron_k(self.k(x)), self.neuron_v(self.v(x))
        return self.neuron_out(self.proj(self.neuron_attn(self._product(q, k, v))))

    def _product(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shape = q.shape
        q, k, v = (z.flatten(-2).unflatten(-2, (self.num_heads, -1)) for z in (q, k, v))
        attention = self.first((k.mT, q))  # whole numbers, [.., keys, queries]
        if self.denoise:
            attention = attention * (attention.detach() >= self.denoise)
        return (self.second((v, attention)) * self.scale).reshape(shape)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, denoise={self.denoise}"
