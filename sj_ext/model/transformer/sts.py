"""STS-Transformer: attention over space and time, for event frames.

Source: Wang et al., "Spatial-Temporal Self-Attention for Asynchronous Spiking Neural Networks",
IJCAI 2023. Its program's dropout in the MLP is left out.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from ... import checks, host
from ...arguments import checked
from ...layer.attention.stsa import STSA
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory
from ...layer.stem import ConvStem
from .backbone import Head, SpikingTransformer, initialize_linear
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "load_published",
    "sts_neuron",
    "sts_transformer",
    "sts_transformer_2_256_gesture",
]

NAMES = PublishedNames(
    "STS-Transformer",
    (
        *(
            (rf"^conv_stem\.block{i + 1}_(conv|bn)\.", rf"stem.stages.{i}.project.\1.")
            for i in range(4)
        ),
        (r"^conv_stem\.block5_(conv|bn)\.", r"stem.position.project.\1."),
        (r"^block\.", "body."),
        (r"\.attn\.relative_position_bias_table$", ".attn.product.table"),
        (r"\.attn\.(qkv|proj)_(conv|bn)\.", r".attn.\1.\2."),
        (r"\.mlp\.fc(\d)_(conv|bn)\.", r".mlp.fc\1.\2."),
        (r"^classification\.", "head.linear."),
    ),
    (r"\.mask_mat$", r"\.relative_position_index$", r"\.to_qkv_(proj|bn)\."),
)


@checked
def sts_transformer(
    num_classes: int = 11,
    T: int = 10,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 2,
    dim: int = 256,
    num_heads: int = 1,
    mlp_ratio: float = 1,
    in_channels: int = 2,
    image_size: int = 128,
    published_layout: bool = False,
) -> SpikingTransformer:
    """STS-Transformer of any size.

    Args:
        num_classes: at least 1.
        T: the most steps that a sequence may have.
        spiking_neuron: makes the neurons; by default :func:`sts_neuron`.
        depth: number of blocks.
        dim: channels of the tokens, a multiple of 16.
        num_heads: divides ``dim``.
        mlp_ratio: hidden channels of the MLP, over ``dim``.
        in_channels: 2 for events.
        image_size: height and width, a multiple of 16.
        published_layout: attention as the program has it, in which samples of a batch mix, for
            weights that were trained with it; see :class:`~sj_ext.layer.STSA`.

    Shapes:
        as :class:`SpikingTransformer`; in step mode ``'s'`` keys and values of the steps before are
        kept until a reset.

    Raises:
        ValueError: a size is out of range; the message names it.
    """
    if checks.integer("dim", dim, at_least=16) % 16:
        raise ValueError(f"dim must be a multiple of 16, got {dim}")
    if checks.integer("image_size", image_size, at_least=16) % 16:
        raise ValueError(f"image_size must be a multiple of 16, got {image_size}")
    checks.integer("depth", depth, at_least=1)
    neuron, side = spiking_neuron or sts_neuron(), image_size // 16
    widths = (dim // 16, dim // 8, dim // 4, dim)
    stem = ConvStem(in_channels, widths, ("CNP",) * 4, neuron, position="CN")
    hidden = int(dim * checks.number("mlp_ratio", mlp_ratio, above=0))
    blocks = [
        ResidualBlock(
            attn=STSA(
                dim,
                num_heads,
                checks.integer("T", T, at_least=1),
                side,
                side,
                neuron,
                published_layout=published_layout,
            ),
            mlp=SpikingMLP(dim, hidden, neuron, shortcut="spike"),
        )
        for _ in range(depth)
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


def sts_neuron() -> NeuronFactory:
    """The program's neuron: decay 1/2, input as it is, a reset that carries a gradient."""
    return partial(
        host.neuron.LIFNode,
        tau=2.0,
        decay_input=False,
        detach_reset=False,
        surrogate_function=host.surrogate.PiecewiseQuadratic(alpha=1.0),
    )


sts_transformer_2_256_gesture = sized(
    sts_transformer,
    "sts_transformer_2_256_gesture",
    "STS-Transformer 2-256 for DVS128 Gesture",
    num_classes=11,
    T=10,
)
