r"""SGLFormer: attention within sub-grids of the map and over all of it, beside convolutions.

A stage of the networks for CIFAR and events is, with a local block that contains its own shortcut,

.. math::
    x \leftarrow x + L(x), \quad x \leftarrow x + A_{local}(x), \quad x \leftarrow x + M(x),
    \quad\text{then twice}\quad x \leftarrow x + A(x), \quad x \leftarrow x + M(x).

In the program for ImageNet the last neuron of an attention runs over samples as if they were steps,
so that the output of a sample depends on its batch; weights that were trained so need it.
``batch_mixing=True`` does the same, the default does not.

Source: Zhang et al., "SGLFormer: Spiking Global-Local-Fusion Transformer with High Performance",
Frontiers in Neuroscience 18, 2024.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from ... import checks
from ...arguments import checked
from ...layer.attention import SSA
from ...layer.attention.local import LocalSSA
from ...layer.local_block import LocalBlock
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory
from ...layer.stem import ConvStem
from .backbone import Head, SpikingTransformer, initialize_linear, plane, stacked
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "BatchMixingSSA",
    "FullSizeHead",
    "load_published",
    "sglformer",
    "sglformer_8_384",
    "sglformer_8_512",
    "sglformer_8_768",
    "sglformer_256_dvs",
    "sglformer_384_cifar",
    "sglformer_imagenet",
]

#: words of the stems' stages, by variant
STAGES = {
    "cifar": ("CN", "CN", "CN", "CPN", "CPN"),
    "dvs": ("CN", "CPN", "CPN", "CPN", "CPN"),
    "ima": ("CPN", "CPN", "CPN", "CPN", "CN"),
    "ima2": ("CN", "CPN", "CPN", "CPN", "CPN"),
}

_UNITS = (
    (r"\.conv(?:1x1|3x3)\.", ".conv."),
    (r"\.(loc|local1)\.conv\.(conv|bn)\.", r".\1.spatial.project.\2."),
    (r"\.conv1x1_1\.", ".expand.project."),
    (r"\.dwconv3x3\.", ".inner.project."),
    (r"\.conv1x1_2\.", ".contract.project."),
    (r"\.(ssa\d|local2_SSA)\.(q|k|v|proj)_conv\.", r".\1.\2."),
    (r"\.(mlp\d|local2_MLP)\.mlp(\d)\.", r".\1.fc\2."),
)
NAMES = {
    "stages": PublishedNames(
        "SGLFormer",
        (
            (r"^stem\.conv\.", "stem.stages.0.project."),
            (r"^tokenizer\.conv(\d)\.", r"stem.stages.\1.project."),
            *_UNITS,
            (r"^stem\.stages\.(\d)\.project\.conv3x3\.", r"stem.stages.\1.project.conv."),
            (r"^blocks\.", "body."),
            (r"^head\.", "head.linear."),
            (r"^full_size_conv\.", "head.mix."),
            (r"^bn\.", "head.bn."),
        ),
    ),
    "imagenet": PublishedNames(
        "SGLFormer for ImageNet",
        (
            (r"^patch_embed\.proj_", "patch_embed.proj0_"),
            (r"^patch_embed\.proj(\d)_(conv|bn)\.", r"stem.stages.\1.project.\2."),
            *_UNITS,
            (r"^localblock\.", "body.local."),
            (r"^blocks\.", "body.blocks."),
            (r"\.attn\.(q|k|v|proj)_(conv|bn)\.", r".attn.\1.\2."),
            (r"\.mlp\.fc(\d)_(conv|bn)\.", r".mlp.fc\1.\2."),
            (r"^head\.", "head.linear."),
        ),
        (r"\.norm[12]\.",),
    ),
}


@checked
class FullSizeHead(nn.Module):
    """Classifier that weighs every token and step: a depthwise convolution of the whole map.

    Args:
        channels: C.
        tokens: L, height times width.
        steps: T; neither may differ in the input.
        num_classes: at least 1.

    Shapes:
        ``[T, N, C, H, W]`` to ``[1, N, classes]``, in step mode ``'m'`` only.

    Raises:
        ValueError: a size is below 1, or the input has other sizes or is a single step.
    """

    def __init__(self, channels: int, tokens: int, steps: int, num_classes: int):
        super().__init__()
        self.tokens = checks.integer("tokens", tokens, at_least=1)
        self.steps = checks.integer("steps", steps, at_least=1)
        checks.sizes(channels=channels, num_classes=num_classes)
        self.mix = nn.Conv2d(channels, channels, (tokens, steps), groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 5 or len(x) != self.steps or x[0, 0, 0].numel() != self.tokens:
            raise ValueError(
                f"x must have T = {self.steps} steps of {self.tokens} tokens, for which the head "
                f"has weights, got {list(x.shape)}; it needs all steps at once"
            )
        y = self.bn(self.mix(x.flatten(-2).permute(1, 2, 3, 0)))
        return self.linear(y.flatten(1)).unsqueeze(0)


class BatchMixingSSA(SSA):
    """Self-attention whose last neuron runs over samples as if they were steps, as published.

    The output of a sample depends on those before it in the batch: only for weights that were
    trained so. The arguments of :class:`~sj_ext.layer.SSA`.

    Shapes:
        ``[T, N, C, H, W]``, in step mode ``'m'`` only; the same out.

    Raises:
        ValueError: as :class:`~sj_ext.layer.SSA`, or the input is a single step.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 5:
            raise ValueError(f"x must have all steps at once, [T, N, C, H, W], got {list(x.shape)}")
        q, k, v = self.neuron_q(self.q(x)), self.neuron_k(self.k(x)), self.neuron_v(self.v(x))
        y = self.proj(self.neuron_attn(self.product(q, k, v)))
        return self.neuron_out(y.flatten(0, 1)).view_as(y)


@checked
def sglformer(
    num_classes: int = 10,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 1,
    dim: int = 384,
    num_heads: int = 16,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    variant: str = "cifar",
) -> SpikingTransformer:
    """SGLFormer for CIFAR and events, of any size.

    Args:
        num_classes: at least 1.
        T: how many steps there are; the head has weights for each.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        depth: number of stages.
        dim: channels of the tokens, a multiple of 4.
        num_heads: divides ``dim``.
        mlp_ratio: hidden channels of the MLPs, over ``dim``.
        in_channels: 3 for images, 2 for events.
        image_size: height and width, one number if they are the same; the head has weights for
            every token.
        variant: ``'cifar'`` (tokens of 4 x 4 pixels) or ``'dvs'`` (16 x 16).

    Shapes:
        as :class:`SpikingTransformer`, in step mode ``'m'`` only; the output is
        ``[1, N, classes]``.

    Raises:
        ValueError: a size or a name is out of range; the message names it.
    """
    checks.choice("variant", variant, ("cifar", "dvs"))
    stem = _stem(dim, variant, in_channels, spiking_neuron, first=6)
    height, width = plane(image_size, stem.stride)

    def stage(hidden: int) -> ResidualBlock:
        parts: dict[str, nn.Module] = {"loc": LocalBlock(dim, spiking_neuron)}
        for i, attention in enumerate((LocalSSA, SSA, SSA), start=1):
            parts[f"ssa{i}"] = attention(
                dim, num_heads, spiking_neuron, shortcut="spike", proj_bias=False
            )
            parts[f"mlp{i}"] = SpikingMLP(dim, hidden, spiking_neuron, shortcut="spike", bias=False)
        return ResidualBlock(**parts)  # type: ignore[arg-type]

    return stacked(
        stem,
        stage,
        FullSizeHead(dim, height * width, checks.integer("T", T, at_least=1), num_classes),
        depth=depth,
        dim=dim,
        mlp_ratio=mlp_ratio,
        T=T,
        in_channels=in_channels,
        published=NAMES["stages"],
    )


@checked
def sglformer_imagenet(
    num_classes: int = 1000,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 8,
    dim: int = 384,
    num_heads: int = 6,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    variant: str = "ima",
    batch_mixing: bool = False,
) -> SpikingTransformer:
    """SGLFormer for ImageNet, of any size.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`.
        depth: number of blocks as the name has it: a local one, which counts as two, and the rest.
        dim: channels of the tokens, a multiple of 8.
        num_heads: divides ``dim``.
        mlp_ratio: hidden channels of the MLPs, over ``dim``.
        in_channels: 3 for images.
        variant: ``'ima'`` pools from the first convolution on, ``'ima2'`` from the second on.
        batch_mixing: attention as the program has it, for weights that were trained with it.

    Shapes:
        as :class:`SpikingTransformer`; with ``batch_mixing`` in step mode ``'m'`` only.

    Raises:
        ValueError: a size or a name is out of range; the message names it.
    """
    checks.choice("variant", variant, ("ima", "ima2"))
    checks.integer("depth", depth, at_least=3)
    stem = _stem(dim, variant, in_channels, spiking_neuron, first=8)
    hidden = int(dim * checks.number("mlp_ratio", mlp_ratio, above=0))
    attention = BatchMixingSSA if checks.flag("batch_mixing", batch_mixing) else SSA
    local = ResidualBlock(
        local1=LocalBlock(dim, spiking_neuron),
        local2_SSA=LocalSSA(dim, num_heads, spiking_neuron, shortcut="spike", proj_bias=False),
        local2_MLP=SpikingMLP(dim, hidden, spiking_neuron, shortcut="spike", bias=False),
    )
    blocks = [
        ResidualBlock(
            attn=attention(dim, num_heads, spiking_neuron, shortcut="spike"),
            mlp=SpikingMLP(dim, hidden, spiking_neuron, shortcut="spike"),
        )
        for _ in range(depth - 2)
    ]
    body: OrderedDict[str, nn.Module] = OrderedDict(
        local=nn.Sequential(local), blocks=nn.Sequential(*blocks)
    )
    model = SpikingTransformer(
        stem,
        nn.Sequential(body),
        Head(dim, num_classes),
        T=T,
        in_channels=in_channels,
        published=NAMES["imagenet"],
    )
    initialize_linear(model)
    return model


def _stem(
    dim: int, variant: str, in_channels: int, spiking_neuron: NeuronFactory | None, first: int
) -> ConvStem:
    multiple = 4 if first == 6 else 8
    if checks.integer("dim", dim, at_least=multiple) % multiple:
        raise ValueError(f"dim must be a multiple of {multiple}, got {dim}")
    widths = (dim // first, dim // 4, dim // 2, dim, dim)
    return ConvStem(in_channels, widths, STAGES[variant], spiking_neuron)


sglformer_384_cifar = sized(
    sglformer, "sglformer_384_cifar", "SGLFormer 384 for CIFAR", num_classes=10
)
sglformer_256_dvs = sized(
    sglformer,
    "sglformer_256_dvs",
    "SGLFormer 256 for event frames of 128 pixels",
    num_classes=10,
    T=10,
    dim=256,
    in_channels=2,
    image_size=128,
    variant="dvs",
)
sglformer_8_384 = sized(
    sglformer_imagenet, "sglformer_8_384", "SGLFormer 8-384 for ImageNet", dim=384, num_heads=6
)
sglformer_8_512 = sized(
    sglformer_imagenet, "sglformer_8_512", "SGLFormer 8-512 for ImageNet", dim=512, num_heads=8
)
sglformer_8_768 = sized(
    sglformer_imagenet, "sglformer_8_768", "SGLFormer 8-768 for ImageNet", dim=768, num_heads=12
)
