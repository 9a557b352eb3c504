"""AutoST's networks: Spikformer with neurons first, a ratio and a number of heads for each block.

Source: Wang et al., "AutoST: Training-free Neural Architecture Search for Spiking Transformers",
ICASSP 2024 (arXiv 2307.00293).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ... import host
from ...arguments import checked
from ...layer.attention import SSA
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory, lif
from ...layer.stem import ConvStem
from .backbone import Head, SpikingTransformer, initialize_linear, pyramid
from .published import PublishedNames, load_published

__all__ = ["NAMES", "autost", "load_published"]

NAMES = PublishedNames(
    "AutoST",
    (
        (r"^patch_embed\.proj_(conv|bn)\.", r"stem.stages.0.project.\1."),
        (r"^patch_embed\.proj_(conv|bn)(\d)\.", r"stem.stages.\2.project.\1."),
        (r"^patch_embed\.proj_lif\.", "stem.stages.0.neuron."),
        (r"^patch_embed\.proj_lif(\d)\.", r"stem.stages.\1.neuron."),
        (r"^patch_embed\.rpe_(conv|bn)\.", r"stem.position.project.\1."),
        (r"^block\.", "body."),
        (r"\.attn\.lif\.", ".attn.neuron_in."),
        (r"\.attn\.attn_lif\.", ".attn.neuron_attn."),
        (r"\.attn\.(q|k|v)_lif\.", r".attn.neuron_\1."),
        (r"\.attn\.(q|k|v|proj)_linear\.", r".attn.\1.conv."),
        (r"\.attn\.(q|k|v|proj)_bn\.", r".attn.\1.bn."),
        (r"\.mlp\.fc(\d)_linear\.", r".mlp.fc\1.conv."),
        (r"\.mlp\.fc(\d)_bn\.", r".mlp.fc\1.bn."),
        (r"\.mlp\.fc(\d)_lif\.", r".mlp.neuron\1."),
        (r"^head\.", "head.linear."),
    ),
    (r"\.norm[12]\.",),
)


@checked
def autost(
    num_classes: int = 100,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    dim: int = 384,
    num_heads: Sequence[int] = (8, 8, 8, 8),
    mlp_ratios: Sequence[float] = (4, 4, 4, 4),
    in_channels: int = 3,
) -> SpikingTransformer:
    """The network of a candidate; :mod:`sj_ext.search` has the space and the score.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons; by default parametric leaky ones.
        dim: channels of the tokens, a multiple of 8.
        num_heads: of each block; every one divides ``dim``.
        mlp_ratios: hidden channels of each block's MLP, over ``dim``.
        in_channels: 3 for images.

    Shapes:
        as :class:`SpikingTransformer`; height and width are multiples of 4.

    Raises:
        ValueError: a size is out of range, or there are not as many ratios as heads.
    """
    if len(num_heads) != len(mlp_ratios) or not num_heads:
        raise ValueError(
            f"mlp_ratios must have one entry per block in num_heads, got {len(mlp_ratios)} for "
            f"{len(num_heads)}"
        )
    neuron = spiking_neuron or lif(node=host.neuron.ParametricLIFNode)
    stem = ConvStem(in_channels, pyramid(dim), ("CN", "CN", "CNP", "CP"), neuron, position="C")
    blocks = [
        ResidualBlock(
            attn=SSA(dim, heads, neuron, qkv_bias=True),
            mlp=SpikingMLP(dim, int(dim * ratio), neuron),
        )
        for heads, ratio in zip(num_heads, mlp_ratios, strict=True)
    ]
    model = SpikingTransformer(
        stem,
        nn.Sequential(*blocks),
        Head(dim, num_classes),
        T=T,
        in_channels=in_channels,
        published=NAMES,
    )
    initialize_linear(model)
    return model
