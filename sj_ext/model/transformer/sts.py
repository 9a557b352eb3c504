"""STS-Transformer: attention over space and time, for event frames.

Source: Wang et al., "Spatial-Temporal Self-Attention for Asynchronous Spiking Neural Networks",
IJCAI 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ... import checks, host
from ...arguments import checked
from ...layer.attention.stsa import STSA
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory
from ...layer.stem import ConvStem
from .backbone import Head, SpikingTransformer, plane, stacked
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
    image_size: int | Sequence[int] = 128,
    dropout: float = 0.0,
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
        image_size: height and width, multiples of 16; one number if they are the same.
        dropout: share of the MLP's values that are left out in training, before each of its norms.
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
    checks.integer("T", T, at_least=1)
    neuron, (height, width) = spiking_neuron or sts_neuron(), plane(image_size, 16)
    widths = (dim // 16, dim // 8, dim // 4, dim)
    stem = ConvStem(in_channels, widths, ("CNP",) * 4, neuron, position="CN")

    def block(hidden: int) -> ResidualBlock:
        return ResidualBlock(
            attn=STSA(dim, num_heads, T, height, width, neuron, published_layout=published_layout),
            mlp=SpikingMLP(dim, hidden, neuron, shortcut="spike", dropout=dropout),
        )

    return stacked(
        stem,
        block,
        Head(dim, num_classes),
        depth=depth,
        dim=dim,
        mlp_ratio=mlp_ratio,
        T=T,
        in_channels=in_channels,
        published=NAMES,
    )


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
    dropout=0.3,
)
