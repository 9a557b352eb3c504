r"""Spatio-temporal self-attention: every token of this step and of all steps before it.

With queries, keys and values of spikes, tokens i of step t and j of step :math:`t' \le t`,

.. math::
    o_i[t] = c \sum_{t' \le t} \sum_j \big(q_i[t] \cdot k_j[t'] + B(t - t', i - j)\big)\, v_j[t'],

where B is learned for every difference in time, row and column. As nothing of a later step is
needed, the steps can come one by one: keys and values of those before are the state.
"""

from __future__ import annotations

import torch
from torch import nn

from ... import checks, host
from ..conv_bn import ConvBN
from ..spiking import NeuronFactory, new_neuron
from .matrix_product import MatrixProduct
from .ssa import check_heads

__all__ = ["STSA", "TemporalProduct"]


class TemporalProduct(host.base.MemoryModule):
    """The product of queries with keys and values of this and all earlier steps.

    Args:
        num_heads: number of heads.
        steps: how many steps the bias is for; sequences may be shorter.
        height, width: of the map.
        scale: c.

    Shapes:
        queries, keys and values ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in
        ``'s'``; the same out.

    Raises:
        ValueError: a size is below 1; there are more steps than the bias is for, or the map has
            another size.
    """

    keys: list[torch.Tensor] | None
    values: list[torch.Tensor] | None

    def __init__(self, num_heads: int, steps: int, height: int, width: int, scale: float = 0.125):
        super().__init__()
        self.num_heads = checks.integer("num_heads", num_heads, at_least=1)
        self.steps = checks.integer("steps", steps, at_least=1)
        self.height = checks.integer("height", height, at_least=1)
        self.width = checks.integer("width", width, at_least=1)
        self.scale = checks.number("scale", scale)
        rows = (2 * steps - 1) * (2 * height - 1) * (2 * width - 1)
        self.table = nn.Parameter(torch.empty(rows, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.first, self.second = MatrixProduct(), MatrixProduct()
        self.register_memory("keys", None)
        self.register_memory("values", None)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.shape[-2:] != (self.height, self.width):
            raise ValueError(
                f"height and width of x must be those that the bias is for, {self.height} and "
                f"{self.width}, got {list(q.shape[-2:])}"
            )
        if self.step_mode == "m":
            return torch.stack([self._step(*z) for z in self._sequence(q, k, v)])
        self.keys, self.values = [*(self.keys or []), k], [*(self.values or []), v]
        return self._step(q, self.keys, self.values)

    def _sequence(self, q, k, v):  # type: ignore[no-untyped-def]
        keys, values = k.unbind(0), v.unbind(0)
        return ((q[t], keys[: t + 1], values[: t + 1]) for t in range(len(q)))

    def _step(
        self, q: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]
    ) -> torch.Tensor:
        if len(keys) > self.steps:
            raise ValueError(
                f"T must be at most the {self.steps} steps that the bias is for, got {len(keys)}"
            )
        queries = self._heads(q)
        total = torch.zeros_like(queries.mT)
        for lag, (k, v) in enumerate(zip(reversed(keys), reversed(values), strict=True)):
            attention = self.first((queries.mT, self._heads(k))) + self.bias(lag)
            total = total + self.second((attention, self._heads(v).mT))
        return (self.scale * total).mT.reshape(q.shape)

    def bias(self, lag: int) -> torch.Tensor:
        """B between the tokens of steps that are ``lag`` apart, ``[heads, L, L]``."""
        device = self.table.device
        rows = torch.arange(self.height, device=device).repeat_interleave(self.width)
        columns = torch.arange(self.width, device=device).repeat(self.height)
        across, along = 2 * self.height - 1, 2 * self.width - 1
        down = (rows[:, None] - rows + self.height - 1) * along
        index = down + (columns[:, None] - columns + self.width - 1)
        index = index + (lag + self.steps - 1) * across * along
        return self.table[index].movedim(-1, 0)

    def _heads(self, z: torch.Tensor) -> torch.Tensor:
        return z.flatten(-2).unflatten(-2, (self.num_heads, -1))

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, steps={self.steps}, height={self.height}, "
            f"width={self.width}"
        )


class STSA(nn.Module):
    """Spatio-temporal self-attention with a learned bias of relative position in time and space.

    Args:
        dim: C.
        num_heads: divides C.
        steps: how many steps the bias is for; sequences may be shorter.
        height, width: of the map.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        scale: c.
        published_layout: read the input as the public program does, which takes its memory, laid
            out as ``[T, N, C, H, W]``, for ``[N, C, T, H, W]``: channels, steps and samples change
            places before the projection. Only for weights that were trained so.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``, where keys and values
        of earlier steps are kept until a reset; the same out, spikes.

    Raises:
        ValueError: as :class:`TemporalProduct`, ``num_heads`` does not divide ``dim``, or the
            published layout gets a single step.

    Source: Wang et al., "Spatial-Temporal Self-Attention for Asynchronous Spiking Neural Networks",
    IJCAI 2023.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        steps: int,
        height: int,
        width: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        scale: float = 0.125,
        published_layout: bool = False,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.published_layout = checks.flag("published_layout", published_layout)
        self.qkv = ConvBN(dim, 3 * dim)
        self.neuron_qkv = new_neuron(spiking_neuron)
        self.product = TemporalProduct(num_heads, steps, height, width, scale)
        self.neuron_attn = new_neuron(spiking_neuron)
        self.proj = ConvBN(dim, dim, bias=True)
        self.neuron_out = new_neuron(spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.published_layout:
            x = _as_published(x)
        q, k, v = self.neuron_qkv(self.qkv(x)).chunk(3, -3)
        return self.neuron_out(self.proj(self.neuron_attn(self.product(q, k, v))))


def _as_published(x: torch.Tensor) -> torch.Tensor:
    """``[T, N, C, H, W]`` whose memory is taken for ``[N, C, T, H, W]``."""
    if x.dim() != 5:
        raise ValueError(
            f"x must have all steps at once, [T, N, C, H, W], in the published layout, got "
            f"{list(x.shape)}"
        )
    steps, samples, channels, *size = x.shape
    return x.reshape(samples, channels, steps, *size).movedim(2, 0)
