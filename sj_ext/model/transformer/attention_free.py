"""Attention-free Spikformer: Fourier or Haar transforms in place of self-attention.

A reading of Wang et al., "Attention-free Spikformer" (arXiv 2308.02557) and "FWformer" (arXiv
2403.18228): no program of either is public, and no published weights can be loaded.
"""

from __future__ import annotations

from ...arguments import checked
from ...layer.mixer.linear import LinearMixer
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory
from .backbone import Head, SpikingTransformer, stacked
from .sized import sized
from .spikformer import spikformer_stem

__all__ = ["attention_free_spikformer", "attention_free_spikformer_4_384_cifar"]


@checked
def attention_free_spikformer(
    num_classes: int = 10,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 4,
    dim: int = 384,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    patch_size: int = 4,
    transform: str = "fft2d",
) -> SpikingTransformer:
    """Attention-free Spikformer of any size.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        depth: number of blocks.
        dim: channels of the tokens, a multiple of 8.
        mlp_ratio: hidden channels of the MLP, over ``dim``.
        in_channels: 3 for images, 2 for events.
        patch_size: 4 or 16.
        transform: of the mixers, see :class:`~sj_ext.layer.LinearMixer`.

    Shapes:
        as :class:`SpikingTransformer`.

    Raises:
        ValueError: a size or a name is out of range; the message names it.
    """

    def block(hidden: int) -> ResidualBlock:
        return ResidualBlock(
            mixer=LinearMixer(dim, transform, spiking_neuron),
            mlp=SpikingMLP(dim, hidden, spiking_neuron, shortcut="spike"),
        )

    return stacked(
        spikformer_stem(dim, spiking_neuron, in_channels=in_channels, patch_size=patch_size),
        block,
        Head(dim, num_classes),
        depth=depth,
        dim=dim,
        mlp_ratio=mlp_ratio,
        T=T,
        in_channels=in_channels,
    )


attention_free_spikformer_4_384_cifar = sized(
    attention_free_spikformer,
    "attention_free_spikformer_4_384_cifar",
    "Attention-free Spikformer 4-384 for CIFAR",
    num_classes=10,
)
