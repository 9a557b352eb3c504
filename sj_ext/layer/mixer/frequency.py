r"""The frequency-aware token mixer of the spiking wavelet transformer (FATM).

Spikes are taken into the frequency domain by a Haar transform whose products fire signed spikes,
mixed there within blocks of channels, and taken back; beside that, convolutions mix in space:

.. math::
    z = \mathrm{LIF}(x), \quad f = \mathrm{LIF}(B\, \mathcal{H} z), \quad
    r = B\, \mathcal{H}^{-1} (B\, W f), \qquad y = r + B\, K_1 z + B\, K_3 z,

where :math:`\mathcal{H} z = H\, \mathrm{NegIF}(z H^T)`.
"""

from __future__ import annotations

import torch
from torch import nn

from ... import checks, host
from ...neuron.neg_if import NegIFNode
from ..attention.matrix_product import MatrixProduct
from ..haar import haar_matrix
from ..spiking import NeuronFactory, new_neuron

__all__ = ["FrequencyMixer"]


class FrequencyMixer(nn.Module):
    """Haar transform, mixing within blocks of channels, inverse transform; convolutions beside it.

    Args:
        channels: C.
        blocks: the channels' number of blocks; each is mixed by itself. The convolutions' kernels
            are shared by all blocks.
        spiking_neuron: makes the unsigned neurons, see :mod:`sj_ext.layer.spiking`.
        v_threshold: positive threshold of the signed neurons in the transforms.
        neg_v_threshold: their negative one.
        events: the variant for event frames: spikes and what comes back are max-pooled with stride
            1, and the convolutions read what comes back, whose own sum is left out.

    Shapes:
        ``[T, N, C, n, n]`` in step mode ``'m'``, ``[N, C, n, n]`` in ``'s'``, n a power of two; the
        same out, real.

    Raises:
        ValueError: ``blocks`` does not divide ``channels``; height and width differ or are no power
            of two.

    Source: Fang et al., "Spiking Wavelet Transformer", ECCV 2024 (arXiv 2403.11138).
    """

    def __init__(
        self,
        channels: int,
        blocks: int = 4,
        spiking_neuron: NeuronFactory | None = None,
        *,
        v_threshold: float = 1.0,
        neg_v_threshold: float = 0.5,
        events: bool = False,
    ):
        super().__init__()
        checks.integer("channels", channels, at_least=1)
        if channels % checks.integer("blocks", blocks, at_least=1):
            raise ValueError(f"blocks must divide the {channels} channels, got {blocks}")
        self.blocks, size = blocks, channels // blocks
        self.weight = nn.Parameter(0.02 * torch.randn(blocks, size, size))
        self.conv1, self.conv3 = nn.Conv2d(size, size, 1), nn.Conv2d(size, size, 3, padding=1)
        self.bn_forward, self.bn_mixed, self.bn_inverse, self.bn1, self.bn3 = (
            host.layer.BatchNorm2d(channels) for _ in range(5)
        )
        self.neuron_in, self.neuron_frequency = (new_neuron(spiking_neuron) for _ in range(2))
        self.neuron_forward, self.neuron_inverse, self.neuron_columns = (
            NegIFNode(v_threshold, neg_v_threshold) for _ in range(3)
        )
        self.transform, self.mix = MatrixProduct(), MatrixProduct()
        self.pool = host.layer.MaxPool2d(3, 1, 1) if checks.flag("events", events) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"height and width of x must be equal, got {list(x.shape[-2:])}")
        haar = haar_matrix(int(x.shape[-1])).to(x)
        z = self.neuron_in(x)
        if self.pool is not None:
            z = self.pool(z)
        r = self.bn_inverse(
            self._inverse(self.bn_mixed(self._mixed(self._frequencies(z, haar))), haar)
        )
        if self.pool is None:
            return r + self._in_space(z)
        return self._in_space(self.pool(r))

    def _frequencies(self, z: torch.Tensor, haar: torch.Tensor) -> torch.Tensor:
        rows = self.neuron_forward(self.transform((z, haar.mT)))
        return self.neuron_frequency(self.bn_forward(self.transform((haar, rows))))

    def _mixed(self, f: torch.Tensor) -> torch.Tensor:
        parts = f.unflatten(-3, (self.blocks, -1))
        mixed = self.mix((self.weight.mT, parts.flatten(-2)))
        return mixed.unflatten(-1, f.shape[-2:]).flatten(-4, -3)

    def _inverse(self, g: torch.Tensor, haar: torch.Tensor) -> torch.Tensor:
        columns = self.neuron_columns(self.transform((self.neuron_inverse(g), haar)))
        return self.transform((haar.mT, columns))

    def _in_space(self, z: torch.Tensor) -> torch.Tensor:
        parts = z.unflatten(-3, (self.blocks, -1))
        flat = parts.flatten(0, -4)
        return self.bn1(self.conv1(flat).view_as(z)) + self.bn3(self.conv3(flat).view_as(z))
