r"""Mixing tokens by a fixed linear transform in place of attention.

.. math::
    y = \mathrm{LIF}(B(\mathcal{L}\, x)),

with a Fourier or Haar transform :math:`\mathcal{L}` that has nothing to learn. What the transform
gives is real, so that this part of a network multiplies.
"""

from __future__ import annotations

import torch
from torch import nn

from ... import checks, host
from ..attention.matrix_product import MatrixProduct
from ..haar import haar_matrix
from ..spiking import NeuronFactory, new_neuron

__all__ = ["TRANSFORMS", "LinearMixer"]

TRANSFORMS = ("fft1d", "fft2d", "wav1d", "wav2d", "combo")


class LinearMixer(nn.Module):
    r"""A Fourier or Haar transform over tokens, or tokens and channels, norm and neuron.

    With X the map of a step, channels by tokens, F the orthonormal Fourier and H the Haar matrix:
    ``fft1d`` is :math:`\Re X F^T`, ``fft2d`` :math:`\Re F X F^T`, ``wav1d`` :math:`X H^T`,
    ``wav2d`` :math:`H X H^T`, and ``combo`` :math:`\alpha_0` times ``fft2d`` plus
    :math:`\alpha_1` times ``wav2d``, with both learned.

    Args:
        channels: C.
        transform: one of these.
        spiking_neuron: makes the neuron, see :mod:`sj_ext.layer.spiking`.
        inverse: the inverse transform; of Fourier, whose real part is taken both ways, it is the
            same operator.

    Shapes:
        ``[T, N, C, H, W]`` in step mode ``'m'``, ``[N, C, H, W]`` in ``'s'``; the same out. Where
        the Haar transform is taken, H W, and for two axes C too, are powers of two.

    Raises:
        ValueError: ``transform`` is unknown or a size is no power of two where it must be.

    Source: a reading of Wang et al., "Attention-free Spikformer" (arXiv 2308.02557), and "FWformer"
    (arXiv 2403.18228), of which no program is public: the order of transform, norm and neuron and
    the combination are choices made here.
    """

    def __init__(
        self,
        channels: int,
        transform: str = "fft2d",
        spiking_neuron: NeuronFactory | None = None,
        *,
        inverse: bool = False,
    ):
        super().__init__()
        self.transform = checks.choice("transform", transform, TRANSFORMS)
        self.inverse = checks.flag("inverse", inverse)
        self.alpha = nn.Parameter(torch.full((2,), 0.5)) if transform == "combo" else None
        self.bn = host.layer.BatchNorm2d(checks.integer("channels", channels, at_least=1))
        self.product = MatrixProduct()
        self.neuron = new_neuron(spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.transformed(x.flatten(-2)).unflatten(-1, x.shape[-2:])
        return self.neuron(self.bn(y))

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """The transform alone, of ``[..., C, L]``."""
        if self.alpha is None:
            return self._one(self.transform, x)
        return self.alpha[0] * self._one("fft2d", x) + self.alpha[1] * self._one("wav2d", x)

    def _one(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if name.startswith("fft"):
            axes = (-1,) if name == "fft1d" else (-2, -1)
            function = torch.fft.ifftn if self.inverse else torch.fft.fftn
            return function(x, dim=axes, norm="ortho").real
        rows = haar_matrix(int(x.shape[-1])).to(x)
        y = self.product((x, rows if self.inverse else rows.mT))
        if name == "wav1d":
            return y
        columns = haar_matrix(int(x.shape[-2])).to(x)
        return self.product((columns.mT if self.inverse else columns, y))

    def extra_repr(self) -> str:
        return f"transform={self.transform!r}, inverse={self.inverse}"
