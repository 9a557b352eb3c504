"""Meta-SpikeFormer (spike-driven Transformer V2): convolutions first, attention of spikes behind.

A pyramid of four stages. The first two mix tokens with separable convolutions, the last two with
spike-driven self-attention (:class:`~sj_ext.layer.SDSA3`); every shortcut carries membrane
potentials, every map but the first reads spikes.

Source: Yao et al., "Spike-driven Transformer V2: Meta Spiking Neural Network Architecture Inspiring
the Design of Next-generation Neuromorphic Chips", ICLR 2024 (arXiv 2404.03663).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ... import checks
from ...arguments import checked
from ...layer.attention import SDSA3
from ...layer.downsampling import Downsampling
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.sep_conv import SepConv
from ...layer.spiking import NeuronFactory, lif
from .backbone import Head, SpikingTransformer, initialize_linear
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "load_published",
    "meta_spikeformer",
    "meta_spikeformer_15m",
    "meta_spikeformer_31m",
    "meta_spikeformer_55m",
]

#: names of the public program
NAMES = PublishedNames(
    "Meta-SpikeFormer",
    (
        (r"^downsample1_1\.", "stem."),
        (r"^downsample(\w+)\.", r"body.down\1."),
        (r"^ConvBlock(\d)_(\d)\.0\.", r"body.conv\1_\2."),
        (r"^block([34])\.(\d+)\.", r"body.blocks\1.\2."),
        (r"(^|\.)encode_(conv|bn)\.", r"\1project.\2."),
        (r"\.(conv|bn)([12])\.", r".fc\2.\1."),
        (r"\.Conv\.pwconv1\.", ".sep.expand.conv."),
        (r"\.Conv\.fc1\.bn\.", ".sep.expand.bn."),
        (r"\.Conv\.dwconv\.", ".sep.reduce.depthwise."),
        (r"\.Conv\.pwconv2\.", ".sep.reduce.pointwise.conv."),
        (r"\.Conv\.fc2\.bn\.", ".sep.reduce.pointwise.bn."),
        (r"^(body\.conv\d_\d)\.fc", r"\1.mlp.fc"),
        (r"\.mlp\.fc(\d)_(conv|bn)\.", r".mlp.fc\1.\2."),
        (r"\.(q|k|v|proj)_conv\.0\.", r".\1.rep."),
        (r"\.(q|k|v|proj)_conv\.1\.", r".\1.bn."),
        (r"\.body\.0\.", ".inner.conv."),
        (r"\.body\.1\.bn\.", ".inner.bn."),
        (r"\.body\.2\.0\.", ".depthwise."),
        (r"\.body\.2\.1\.", ".outer.conv."),
        (r"\.body\.2\.2\.", ".outer.bn."),
        (r"^head\.", "head.linear."),
        (r"^head_kd\.", "head.distilled."),
    ),
)


@checked
def meta_spikeformer(
    num_classes: int = 1000,
    T: int = 1,
    spiking_neuron: NeuronFactory | None = None,
    *,
    widths: Sequence[int] = (128, 256, 512, 640),
    depths: tuple[int, int] = (6, 2),
    num_heads: int = 8,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    distillation: bool = False,
) -> SpikingTransformer:
    """Meta-SpikeFormer of any size.

    Where a whole batch leaves an attention silent, as images of 64 x 64 pixels do in a fresh
    network, the program's gradients overflow; here they pass through the shortcut only.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for; the authors train with 1 and fine-tune with 4.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`; by default leaky ones
            with a time constant of 2.
        widths: channels of the four stages; the first is even, ``num_heads`` divides the last two.
        depths: number of attention blocks in the third and fourth stage.
        num_heads: of every attention.
        mlp_ratio: hidden channels of the attention blocks' MLP, over the width.
        in_channels: 3 for images, 2 for events.
        distillation: whether there is a second head for a teacher, see :class:`Head`.

    Shapes:
        as :class:`SpikingTransformer`; any height and width, which are divided by 16 and rounded
        up. With ``distillation`` a pair of logits in training.

    Raises:
        ValueError: a size is out of range; the message names it.
    """
    e0, e1, e2, e3 = checks.shape("widths", widths, length=4)
    if e0 % 2:
        raise ValueError(f"widths must begin with an even number, got {tuple(widths)}")
    checks.shape("depths", depths, length=2)
    checks.number("mlp_ratio", mlp_ratio, above=0)

    def down(before: int, after: int, stride: int = 2) -> nn.Module:
        return Downsampling(before, after, 3, stride, spiking_neuron, bias=True)

    def conv(width: int) -> nn.Module:
        return ResidualBlock(
            sep=SepConv(width, spiking_neuron),
            mlp=SpikingMLP(width, 4 * width, spiking_neuron, bias=False, kernel_size=3),
        )

    def blocks(width: int, depth: int) -> nn.Module:
        return nn.Sequential(
            *(
                ResidualBlock(
                    attn=SDSA3(width, num_heads, spiking_neuron),
                    mlp=SpikingMLP(width, int(mlp_ratio * width), spiking_neuron),
                )
                for _ in range(depth)
            )
        )

    body = OrderedDict(
        conv1_1=conv(e0 // 2),
        down1_2=down(e0 // 2, e0),
        conv1_2=conv(e0),
        down2=down(e0, e1),
        conv2_1=conv(e1),
        conv2_2=conv(e1),
        down3=down(e1, e2),
        blocks3=blocks(e2, depths[0]),
        down4=down(e2, e3, stride=1),
        blocks4=blocks(e3, depths[1]),
    )
    model = SpikingTransformer(
        Downsampling(in_channels, e0 // 2, 7, first=True, bias=True),
        nn.Sequential(body),
        Head(e3, num_classes, spiking_neuron or lif(), distillation=distillation),
        T=T,
        in_channels=in_channels,
        published=NAMES,
    )
    initialize_linear(model)
    return model


meta_spikeformer_15m = sized(
    meta_spikeformer,
    "meta_spikeformer_15m",
    "Meta-SpikeFormer of 15.1 million parameters",
    T=1,
    widths=(64, 128, 256, 360),
)
meta_spikeformer_31m = sized(
    meta_spikeformer,
    "meta_spikeformer_31m",
    "Meta-SpikeFormer 8-384, of 31.3 million parameters",
    T=1,
    widths=(96, 192, 384, 480),
)
meta_spikeformer_55m = sized(
    meta_spikeformer,
    "meta_spikeformer_55m",
    "Meta-SpikeFormer 8-512, of 55.4 million parameters",
    T=1,
    widths=(128, 256, 512, 640),
)
