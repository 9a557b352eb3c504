"""RevSFormer: spiking self-attention and MLP as the two halves of reversible blocks."""

from __future__ import annotations

import torch
from torch import nn

from ... import checks
from ...arguments import checked
from ...layer.attention import SSA
from ...layer.mlp import SpikingMLP
from ...layer.reversible_sequence import ReversibleSequence
from ...layer.spiking import NeuronFactory, lif
from ..transformer.backbone import Head, SpikingTransformer, initialize_linear
from ..transformer.published import PublishedNames
from ..transformer.sized import sized
from ..transformer.spikingformer import spikingformer_stem

__all__ = ["NAMES", "revsformer", "revsformer_2_256_dvs", "revsformer_2_384", "revsformer_4_384"]

NAMES = PublishedNames(
    "RevSFormer",
    (
        (r"^patch_embed\.(?:block|proj)(\d)_(conv|bn)\.", r"stem.stages.\1.project.\2."),
        (r"^block\.reversible_blocks\.", "body.1.blocks."),
        (r"\.f_block\.(q|k|v|proj)_(conv|bn)\.", r".f.\1.\2."),
        (r"\.g_block\.mlp(\d)_(conv|bn)\.", r".g.fc\1.\2."),
        (r"^head\.", "head.linear."),
    ),
)


class Doubled(nn.Module):
    """The same map in both streams: ``[T, N, C, H, W]`` to ``[T, N, 2 C, H, W]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], dim=-3)


@checked
def revsformer(
    num_classes: int = 10,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 2,
    dim: int = 384,
    num_heads: int = 12,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    patch_size: int = 4,
    memory: str = "reversible",
) -> SpikingTransformer:
    """RevSFormer of any size: Spikingformer's tokenizer, its map in both streams, blocks, head.

    A block's F is spiking self-attention, its G the MLP, each on ``dim`` channels.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`; by default leaky ones
            with a time constant of 2.
        depth: number of blocks.
        dim: channels of a stream, a multiple of 8.
        num_heads: divides ``dim``; the program has 8 for CIFAR-100.
        mlp_ratio: hidden channels of the MLP, over ``dim``.
        in_channels: 3 for images, 2 for events.
        patch_size: 4 (CIFAR) or 16 (events): what height and width are divided by.
        memory: of the blocks, see :class:`~sj_ext.layer.ReversibleSequence`.

    Shapes:
        as :class:`~sj_ext.model.transformer.SpikingTransformer`, in step mode ``'m'`` only.

    Raises:
        ValueError: a size is out of range; the message names it.
    """
    checks.integer("depth", depth, at_least=1)
    stem = spikingformer_stem(dim, spiking_neuron, in_channels=in_channels, patch_size=patch_size)
    hidden = int(dim * checks.number("mlp_ratio", mlp_ratio, above=0))
    blocks = [
        (SSA(dim, num_heads, spiking_neuron), SpikingMLP(dim, hidden, spiking_neuron))
        for _ in range(depth)
    ]
    model = SpikingTransformer(
        stem,
        nn.Sequential(Doubled(), ReversibleSequence(blocks, memory=memory)),
        Head(2 * dim, num_classes),
        T=T,
        in_channels=in_channels,
        published=NAMES,
    )
    initialize_linear(model)
    return model


revsformer_2_384 = sized(revsformer, "revsformer_2_384", "RevSFormer-2-384", num_classes=10)
revsformer_4_384 = sized(
    revsformer, "revsformer_4_384", "RevSFormer-4-384", num_classes=10, depth=4
)
revsformer_2_256_dvs = sized(
    revsformer,
    "revsformer_2_256_dvs",
    "RevSFormer-2-256 for event frames, whose neurons have a time constant of 1.5",
    num_classes=10,
    T=10,
    spiking_neuron=lif(1.5),
    dim=256,
    num_heads=16,
    in_channels=2,
    patch_size=16,
)
