"""SpikingResformer: a pyramid of dual spike self-attention and grouped convolutions.

Source: Shi et al., "SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural
Networks", CVPR 2024 (arXiv 2403.14302).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ... import checks, host
from ...arguments import checked
from ...layer.attention import DSSA
from ...layer.conv_bn import ConvBN
from ...layer.downsampling import Downsampling
from ...layer.gwffn import GWFFN
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory, lif
from .backbone import Head, SpikingTransformer
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "load_published",
    "spiking_resformer",
    "spiking_resformer_cifar",
    "spiking_resformer_dvs",
    "spiking_resformer_l",
    "spiking_resformer_m",
    "spiking_resformer_s",
    "spiking_resformer_ti",
]

#: names of the public program
NAMES = PublishedNames(
    "SpikingResformer",
    (
        (r"^prologue\.0\.", "stem.project.conv."),
        (r"^prologue\.1\.bn\.", "stem.project.bn."),
        (r"^layers\.([1-9]\d*)\.0\.conv\.", r"body.\1.0.project.conv."),
        (r"^layers\.([1-9]\d*)\.0\.norm\.bn\.", r"body.\1.0.project.bn."),
        (r"^layers\.([1-9]\d*)\.0\.activation\.", r"body.\1.0.neuron."),
        (r"^layers\.", "body."),
        (r"\.W\.", ".attn.patches.conv."),
        (r"\.norm\.bn\.", ".attn.patches.bn."),
        (r"\.Wproj\.", ".attn.proj.conv."),
        (r"\.norm_proj\.bn\.", ".attn.proj.bn."),
        (r"\.activation_(in|attn|out)\.", r".attn.neuron_\1."),
        (r"\.(firing_rate_\w+)$", r".attn.\1"),
        (r"\.(up|down)\.0\.", r".mlp.\1.neuron."),
        (r"\.(up|down)\.1\.", r".mlp.\1.project.conv."),
        (r"\.(up|down)\.2\.bn\.", r".mlp.\1.project.bn."),
        (r"(\d)\.conv\.(\d+)\.0\.", r"\1.mlp.convs.\2.neuron."),
        (r"(\d)\.conv\.(\d+)\.1\.", r"\1.mlp.convs.\2.project.conv."),
        (r"(\d)\.conv\.(\d+)\.2\.bn\.", r"\1.mlp.convs.\2.project.bn."),
        (r"^classifier\.", "head.linear."),
    ),
)

#: the published order of blocks in the three stages
LAYERS = (1 * ("DSSA", "GWFFN"), 2 * ("DSSA", "GWFFN"), 3 * ("DSSA", "GWFFN"))


@checked
def spiking_resformer(
    num_classes: int = 1000,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    widths: Sequence[int] = (64, 192, 384),
    num_heads: Sequence[int] = (1, 3, 6),
    patch_sizes: Sequence[int] = (4, 2, 1),
    layers: Sequence[Sequence[str]] = LAYERS,
    group_size: int = 64,
    in_channels: int = 3,
    prologue: str = "imagenet",
) -> SpikingTransformer:
    """SpikingResformer of any size.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`; by default leaky ones
            with a time constant of 2 and an arc tangent as surrogate.
        widths: channels of the stages.
        num_heads: of the attentions of each stage.
        patch_sizes: of the attentions of each stage.
        layers: of each stage, the order of its blocks, ``'DSSA'`` and ``'GWFFN'``.
        group_size: channels of a group in :class:`~sj_ext.layer.GWFFN`.
        in_channels: 3 for images, 2 for events.
        prologue: ``'imagenet'`` begins with a 7 x 7 convolution and a pool, which divide height and
            width by 4; ``'small'`` with a 3 x 3 convolution.

    Shapes:
        as :class:`SpikingTransformer`; every stage halves height and width (rounded up), and its
        patch size must divide what is left.

    Raises:
        ValueError: a size or a name is out of range, or the stages' numbers differ.
    """
    widths = checks.shape("widths", widths)
    stages = len(widths)
    num_heads = checks.shape("num_heads", num_heads, length=stages)
    patch_sizes = checks.shape("patch_sizes", patch_sizes, length=stages)
    if len(layers) != stages:
        raise ValueError(f"layers must have {stages} entries, as widths has, got {len(layers)}")
    neuron = spiking_neuron or lif(surrogate_function=host.surrogate.ATan())

    body = nn.Sequential()
    for i, width in enumerate(widths):
        stage = nn.Sequential()
        if i:
            stage.append(Downsampling(widths[i - 1], width, 3, 2, neuron))
        for kind in layers[i]:
            if checks.choice("layers", kind, ("DSSA", "GWFFN")) == "DSSA":
                attention = DSSA(width, num_heads[i], neuron, patch_size=patch_sizes[i])
                stage.append(ResidualBlock(attn=attention))
            else:
                stage.append(ResidualBlock(mlp=GWFFN(width, neuron, group_size=group_size)))
        body.append(stage)
    model = SpikingTransformer(
        _prologue(in_channels, widths[0], prologue),
        body,
        Head(widths[-1], num_classes, bias=False),
        T=T,
        in_channels=in_channels,
        published=NAMES,
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
    return model


def _prologue(in_channels: int, width: int, kind: str) -> nn.Sequential:
    stem = nn.Sequential()
    if checks.choice("prologue", kind, ("imagenet", "small")) == "imagenet":
        stem.add_module("project", ConvBN(in_channels, width, 7, 2))
        stem.add_module("pool", host.layer.MaxPool2d(3, 2, 1))
    else:
        stem.add_module("project", ConvBN(in_channels, width, 3))
    return stem


spiking_resformer_ti = sized(
    spiking_resformer, "spiking_resformer_ti", "SpikingResformer-Ti for ImageNet"
)
spiking_resformer_s = sized(
    spiking_resformer,
    "spiking_resformer_s",
    "SpikingResformer-S for ImageNet",
    widths=(64, 256, 512),
    num_heads=(1, 4, 8),
)
spiking_resformer_m = sized(
    spiking_resformer,
    "spiking_resformer_m",
    "SpikingResformer-M for ImageNet",
    widths=(64, 384, 768),
    num_heads=(1, 6, 12),
)
spiking_resformer_l = sized(
    spiking_resformer,
    "spiking_resformer_l",
    "SpikingResformer-L for ImageNet",
    widths=(128, 512, 1024),
    num_heads=(2, 8, 16),
)
spiking_resformer_cifar = sized(
    spiking_resformer,
    "spiking_resformer_cifar",
    "SpikingResformer-Ti for CIFAR",
    num_classes=10,
    prologue="small",
)
spiking_resformer_dvs = sized(
    spiking_resformer,
    "spiking_resformer_dvs",
    "SpikingResformer for event frames of three channels, whose neurons learn their time constants",
    num_classes=11,
    T=16,
    spiking_neuron=lif(2.0, host.surrogate.ATan(), host.neuron.ParametricLIFNode),
    widths=(32, 96, 192),
    group_size=32,
    prologue="small",
)
