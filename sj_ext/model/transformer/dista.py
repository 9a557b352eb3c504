"""DISTA: Spikformer with attention over a window of steps and neurons of learned time constants.

A reading of Xu et al., "DISTA: Denoising Spiking Transformer with Intrinsic Plasticity and
Spatiotemporal Attention" (arXiv 2311.09376): no program of it is public, and no published weights
can be loaded. With a window of 1, no denoising and time constants that are held at 2 it is
Spikformer.
"""

from __future__ import annotations

from ... import host
from ...arguments import checked
from ...layer.attention.dista import DISTAttention
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory, lif
from .backbone import Head, SpikingTransformer, stacked
from .sized import sized
from .spikformer import spikformer_stem

__all__ = ["dista", "dista_4_384_cifar"]


@checked
def dista(
    num_classes: int = 10,
    T: int = 6,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 4,
    dim: int = 384,
    num_heads: int = 12,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    patch_size: int = 4,
    window: int = 2,
    denoise: float = 0.0,
) -> SpikingTransformer:
    """DISTA of any size.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons; by default parametric leaky ones.
        depth: number of blocks.
        dim: channels of the tokens, a multiple of 8.
        num_heads: divides ``dim``.
        mlp_ratio: hidden channels of the MLP, over ``dim``.
        in_channels: 3 for images, 2 for events.
        patch_size: 4 or 16.
        window: steps that queries, keys and values are made of.
        denoise: entries of the attention map below it count as 0.

    Shapes:
        as :class:`SpikingTransformer`.

    Raises:
        ValueError: a size is out of range; the message names it.
    """
    neuron = spiking_neuron or lif(node=host.neuron.ParametricLIFNode)

    def block(hidden: int) -> ResidualBlock:
        return ResidualBlock(
            attn=DISTAttention(dim, num_heads, neuron, window=window, denoise=denoise),
            mlp=SpikingMLP(dim, hidden, neuron, shortcut="spike"),
        )

    return stacked(
        spikformer_stem(dim, neuron, in_channels=in_channels, patch_size=patch_size),
        block,
        Head(dim, num_classes),
        depth=depth,
        dim=dim,
        mlp_ratio=mlp_ratio,
        T=T,
        in_channels=in_channels,
    )


dista_4_384_cifar = sized(dista, "dista_4_384_cifar", "DISTA 4-384 for CIFAR", num_classes=10, T=6)
