r"""Spikformer: the first spiking transformer, whose shortcuts add spikes; V2 with another stem.

.. math::
    x \leftarrow x + A(x), \qquad x \leftarrow x + M(x)

with spiking self-attention A and an MLP M that end with a neuron: x holds whole numbers, and the
convolutions of a block read them.

SpikingJelly 2.x has a ``Spikformer`` too; its stem pools before it fires, which is ``'cml'`` here.

Source: Zhou et al., "Spikformer: When Spiking Neural Network Meets Transformer", ICLR 2023 (arXiv
2209.15425); the CML stem from arXiv 2305.05954; Zhou et al., "Spikformer V2: Join the High Accuracy
Club on ImageNet with an SNN Ticket" (arXiv 2401.02020).
"""

from __future__ import annotations

from functools import partial

from ... import checks
from ...arguments import checked
from ...layer.attention import SSA
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory
from ...layer.stem import ConvStem
from ...layer.stem_scs import SCS
from .backbone import Head, SpikingTransformer, pyramid, stacked
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "STAGES",
    "load_published",
    "spikformer",
    "spikformer_2_384_cifar",
    "spikformer_4_256_cifar",
    "spikformer_4_384_cifar",
    "spikformer_8_384",
    "spikformer_8_512",
    "spikformer_8_768",
    "spikformer_stem",
    "spikformer_v2",
    "spikformer_v2_8_384",
    "spikformer_v2_8_512",
    "spikformer_v2_8_768",
    "spikformer_v2_12_512",
    "spikformer_v2_16_768",
]

#: words of the stem's stages (:class:`~sj_ext.layer.ConvStem`), by order and by stride
STAGES = {
    ("original", 16): ("CNP", "CNP", "CNP", "CNP"),
    ("original", 4): ("CN", "CN", "CNP", "CNP"),
    ("cml", 16): ("CPN", "CPN", "CPN", "CPN"),
    ("cml", 4): ("CN", "CN", "CPN", "CPN"),
}

_RULES = (
    (r"^patch_embed\.rpe_(conv|bn)\.", r"stem.position.project.\1."),
    (r"^block\.", "body."),
    (r"\.attn\.(q|k|v|proj)_(?:linear|conv)\.", r".attn.\1.conv."),
    (r"\.attn\.(q|k|v|proj)_bn\.", r".attn.\1.bn."),
    (r"\.mlp\.fc(\d)_(?:linear|conv)\.", r".mlp.fc\1.conv."),
    (r"\.mlp\.fc(\d)_bn\.", r".mlp.fc\1.bn."),
    (r"^head\.", "head.linear."),
)

#: names of the public programs: ``block1_conv`` and on, or ``proj_conv``, ``proj_conv1`` and on
NAMES = {
    "cml": PublishedNames(
        "Spikformer-CML",
        (
            *(
                (rf"^patch_embed\.block{i + 1}_(conv|bn)\.", rf"stem.stages.{i}.project.\1.")
                for i in range(4)
            ),
            *_RULES,
        ),
        (r"^block\.\d+\.norm[12]\.",),
    ),
    "original": PublishedNames(
        "Spikformer",
        (
            (r"^patch_embed\.proj_(conv|bn)\.", r"stem.stages.0.project.\1."),
            (r"^patch_embed\.proj_(conv|bn)(\d)\.", r"stem.stages.\2.project.\1."),
            *_RULES,
        ),
        (r"^block\.\d+\.norm[12]\.",),
    ),
}


@checked
def spikformer(
    num_classes: int = 1000,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 8,
    dim: int = 512,
    num_heads: int = 8,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    patch_size: int = 16,
    downsampling: str = "original",
    qkv_bias: bool | None = None,
) -> SpikingTransformer:
    """Spikformer of any size.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`; by default leaky ones
            with a time constant of 2.
        depth: number of blocks.
        dim: channels of the tokens, a multiple of 8.
        num_heads: divides ``dim``.
        mlp_ratio: hidden channels of the MLP, over ``dim``.
        in_channels: 3 for images, 2 for events.
        patch_size: 16 (ImageNet, events) or 4 (CIFAR): what height and width are divided by.
        downsampling: ``'original'`` pools spikes, ``'cml'`` real values before they fire.
        qkv_bias: whether queries, keys and values have a bias before their normalisation; by
            default as in the programs, for CIFAR only.

    Shapes:
        as :class:`SpikingTransformer`.

    Raises:
        ValueError: a size or a name is out of range; the message names it.
    """
    stem = spikformer_stem(
        dim,
        spiking_neuron,
        in_channels=in_channels,
        patch_size=patch_size,
        downsampling=downsampling,
    )
    biased = patch_size == 4 if qkv_bias is None else checks.flag("qkv_bias", qkv_bias)
    return stacked(
        stem,
        partial(_block, dim, num_heads, spiking_neuron, "spike", biased),
        Head(dim, num_classes),
        depth=depth,
        dim=dim,
        mlp_ratio=mlp_ratio,
        T=T,
        in_channels=in_channels,
        published=NAMES[downsampling],
    )


def spikformer_stem(
    dim: int,
    spiking_neuron: NeuronFactory | None = None,
    *,
    in_channels: int = 3,
    patch_size: int = 16,
    downsampling: str = "original",
) -> ConvStem:
    """Spikformer's patch splitting (SPS): four stages and a position embedding; values 0 to 2.

    Args:
        dim: channels of the tokens, a multiple of 8.
        spiking_neuron: as :func:`spikformer`.
        in_channels: as :func:`spikformer`.
        patch_size: as :func:`spikformer`.
        downsampling: as :func:`spikformer`.

    Shapes:
        ``[T, N, C, H, W]`` to ``[T, N, dim, H / patch_size, W / patch_size]``.

    Raises:
        ValueError: an argument is out of range.
    """
    checks.choice("downsampling", downsampling, ("original", "cml"))
    checks.choice("patch_size", patch_size, (4, 16))
    return ConvStem(
        in_channels,
        pyramid(dim),
        STAGES[downsampling, patch_size],
        spiking_neuron,
        position="CN",
    )


@checked
def spikformer_v2(
    num_classes: int = 1000,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 8,
    dim: int = 512,
    num_heads: int = 8,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    shortcut: str = "spike",
    residual: str = "add",
) -> SpikingTransformer:
    """Spikformer V2 of any size: a reading of the paper, because no program of it is public.

    The widths and kernels of the stem follow from the parameter counts that the paper gives, which
    this network has. What counts cannot tell, and what is therefore an argument here: where the
    neurons stand and how the stem joins its shortcuts. There is no position embedding, and masked
    pre-training is not part of it.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: as :func:`spikformer`.
        depth: number of blocks.
        dim: channels of the tokens, a multiple of 8.
        num_heads: divides ``dim``.
        mlp_ratio: hidden channels of the MLP, over ``dim``.
        in_channels: 3 for images, 2 for events.
        shortcut: ``'spike'`` puts neurons behind the convolutions, as in the first Spikformer;
            ``'membrane'`` in front of them.
        residual: of the stem's convolutional blocks, ``'add'`` or ``'iand'``, see
            :class:`~sj_ext.layer.ResidualBlock`.

    Shapes:
        as :class:`SpikingTransformer`; height and width multiples of 16.

    Raises:
        ValueError: a size or a name is out of range; the message names it.
    """
    return stacked(
        SCS(in_channels, pyramid(dim), spiking_neuron, shortcut=shortcut, residual=residual),
        partial(_block, dim, num_heads, spiking_neuron, shortcut, False),
        Head(dim, num_classes),
        depth=depth,
        dim=dim,
        mlp_ratio=mlp_ratio,
        T=T,
        in_channels=in_channels,
    )


def _block(
    dim: int,
    num_heads: int,
    spiking_neuron: NeuronFactory | None,
    shortcut: str,
    qkv_bias: bool,
    hidden: int,
) -> ResidualBlock:
    return ResidualBlock(
        attn=SSA(dim, num_heads, spiking_neuron, shortcut=shortcut, qkv_bias=qkv_bias),
        mlp=SpikingMLP(dim, hidden, spiking_neuron, shortcut=shortcut),
    )


spikformer_8_384 = sized(spikformer, "spikformer_8_384", "Spikformer 8-384 for ImageNet", dim=384)
spikformer_8_512 = sized(spikformer, "spikformer_8_512", "Spikformer 8-512 for ImageNet", dim=512)
spikformer_8_768 = sized(spikformer, "spikformer_8_768", "Spikformer 8-768 for ImageNet", dim=768)
spikformer_4_256_cifar = sized(
    spikformer,
    "spikformer_4_256_cifar",
    "Spikformer 4-256 for CIFAR",
    num_classes=10,
    depth=4,
    dim=256,
    patch_size=4,
)
spikformer_2_384_cifar = sized(
    spikformer,
    "spikformer_2_384_cifar",
    "Spikformer 2-384 for CIFAR",
    num_classes=10,
    depth=2,
    dim=384,
    num_heads=12,
    patch_size=4,
)
spikformer_4_384_cifar = sized(
    spikformer,
    "spikformer_4_384_cifar",
    "Spikformer 4-384 for CIFAR",
    num_classes=10,
    depth=4,
    dim=384,
    num_heads=12,
    patch_size=4,
)
spikformer_v2_8_384 = sized(spikformer_v2, "spikformer_v2_8_384", "Spikformer V2 8-384", dim=384)
spikformer_v2_8_512 = sized(spikformer_v2, "spikformer_v2_8_512", "Spikformer V2 8-512", dim=512)
spikformer_v2_8_768 = sized(spikformer_v2, "spikformer_v2_8_768", "Spikformer V2 8-768", dim=768)
spikformer_v2_12_512 = sized(
    spikformer_v2, "spikformer_v2_12_512", "Spikformer V2 12-512", depth=12, dim=512
)
spikformer_v2_16_768 = sized(
    spikformer_v2, "spikformer_v2_16_768", "Spikformer V2 16-768", depth=16, dim=768
)
