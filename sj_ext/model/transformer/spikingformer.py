r"""Spikingformer: a transformer whose shortcuts carry real membrane potentials.

.. math::
    x \leftarrow x + A(x), \qquad x \leftarrow x + M(x)

with spiking self-attention A and an MLP M that begin with a neuron, so that every convolution but
the first reads spikes. With the CML stem the tokenizer pools real values before its neurons fire,
instead of pooling spikes.

Source: Zhou et al., "Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking
Neural Network" (arXiv 2304.11954); Zhou et al., "Enhancing the Performance of Transformer-based
Spiking Neural Networks by SNN-optimized Downsampling with Precise Gradient Backpropagation" (arXiv
2305.05954).
"""

from __future__ import annotations

from typing import Any

from ... import checks
from ...arguments import checked
from ...layer.attention import SSA
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory, lif
from ...layer.stem import ConvStem
from .backbone import Head, SpikingTransformer, pyramid, stacked
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "STAGES",
    "load_published",
    "spikingformer",
    "spikingformer_2_256_dvs",
    "spikingformer_2_384_cifar",
    "spikingformer_4_256_cifar",
    "spikingformer_4_384_cifar",
    "spikingformer_8_384",
    "spikingformer_8_512",
    "spikingformer_8_768",
    "spikingformer_stem",
]

#: words of the tokenizer's stages (:class:`~sj_ext.layer.ConvStem`), by order and by stride
STAGES = {
    ("original", 16): ("C", "NPC", "NPC", "NPC", "NPC"),
    ("original", 4): ("C", "NC", "NC", "NPC", "NPC"),
    ("cml", 16): ("CP", "NCP", "NCP", "NCP", "NC"),
    ("cml", 4): ("C", "NC", "NCP", "NCP", "NC"),
}

_BLOCK_RULES = (
    (r"^block\.", "body."),
    (r"\.attn\.(q|k|v|proj)_(conv|bn)\.", r".attn.\1.\2."),
    (r"\.mlp\.mlp(\d)_(conv|bn)\.", r".mlp.fc\1.\2."),
    (r"^head\.", "head.linear."),
)
_DEAD = (r"^block\.\d+\.norm[12]\.",)

#: names of the public programs; CIFAR's tokenizer has names of its own in the original order
NAMES = {
    key: PublishedNames(
        program,
        (
            (r"^patch_embed\.proj_", "patch_embed.proj0_"),
            (rf"^patch_embed\.{stage}(\d)_(conv|bn)\.", r"stem.stages.\1.project.\2."),
            *_BLOCK_RULES,
        ),
        _DEAD,
    )
    for key, program, stage in (
        (("original", 16), "Spikingformer", "proj"),
        (("original", 4), "Spikingformer for CIFAR", "block"),
        (("cml", 16), "Spikingformer-CML", "proj"),
        (("cml", 4), "Spikingformer-CML for CIFAR", "proj"),
    )
}


@checked
def spikingformer(
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
) -> SpikingTransformer:
    """Spikingformer of any size.

    A checkpoint of the original order with ``patch_size`` 16 has the very names and shapes of one
    of CML: ``downsampling`` decides which of the two computations it is loaded into.

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

    Shapes:
        as :class:`SpikingTransformer`.

    Raises:
        ValueError: a size or a name is out of range; the message names it.
    """
    stem = spikingformer_stem(
        dim,
        spiking_neuron,
        in_channels=in_channels,
        patch_size=patch_size,
        downsampling=downsampling,
    )

    def block(hidden: int) -> ResidualBlock:
        return ResidualBlock(
            attn=SSA(dim, num_heads, spiking_neuron), mlp=SpikingMLP(dim, hidden, spiking_neuron)
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
        published=NAMES[downsampling, patch_size],
    )


def spikingformer_stem(
    dim: int,
    spiking_neuron: NeuronFactory | None = None,
    *,
    in_channels: int = 3,
    patch_size: int = 16,
    downsampling: str = "original",
) -> ConvStem:
    """Spikingformer's tokenizer: five convolutions, the last one's real output.

    Args:
        dim: channels of the tokens, a multiple of 8.
        spiking_neuron: as :func:`spikingformer`.
        in_channels: as :func:`spikingformer`.
        patch_size: as :func:`spikingformer`.
        downsampling: as :func:`spikingformer`.

    Shapes:
        ``[T, N, C, H, W]`` to ``[T, N, dim, H / patch_size, W / patch_size]``.

    Raises:
        ValueError: an argument is out of range.
    """
    checks.choice("downsampling", downsampling, ("original", "cml"))
    checks.choice("patch_size", patch_size, (4, 16))
    widths = (*pyramid(dim), dim)
    return ConvStem(in_channels, widths, STAGES[downsampling, patch_size], spiking_neuron)


spikingformer_8_384 = sized(
    spikingformer, "spikingformer_8_384", "Spikingformer 8-384 for ImageNet", dim=384
)
spikingformer_8_512 = sized(
    spikingformer, "spikingformer_8_512", "Spikingformer 8-512 for ImageNet", dim=512
)
spikingformer_8_768 = sized(
    spikingformer, "spikingformer_8_768", "Spikingformer 8-768 for ImageNet", dim=768
)
spikingformer_4_256_cifar = sized(
    spikingformer,
    "spikingformer_4_256_cifar",
    "Spikingformer 4-256 for CIFAR",
    num_classes=10,
    depth=4,
    dim=256,
    patch_size=4,
)
spikingformer_2_384_cifar = sized(
    spikingformer,
    "spikingformer_2_384_cifar",
    "Spikingformer 2-384 for CIFAR",
    num_classes=10,
    depth=2,
    dim=384,
    num_heads=12,
    patch_size=4,
)
spikingformer_4_384_cifar = sized(
    spikingformer,
    "spikingformer_4_384_cifar",
    "Spikingformer 4-384 for CIFAR; with 100 classes the program has 8 heads",
    num_classes=10,
    depth=4,
    dim=384,
    num_heads=12,
    patch_size=4,
)


@checked
def spikingformer_2_256_dvs(
    num_classes: int = 10,
    T: int = 16,
    spiking_neuron: NeuronFactory | None = None,
    *,
    downsampling: str = "original",
    **sizes: Any,
) -> SpikingTransformer:
    """Spikingformer 2-256 for event frames; the arguments of :func:`spikingformer`.

    Its neurons have a time constant of 1.5, with CML of 1.75.

    Shapes:
        those of :func:`spikingformer`.

    Raises:
        ValueError: as :func:`spikingformer`.
    """
    checks.choice("downsampling", downsampling, ("original", "cml"))
    neuron = lif({"original": 1.5, "cml": 1.75}[downsampling])
    sizes = {"depth": 2, "dim": 256, "num_heads": 16, "in_channels": 2} | sizes
    return spikingformer(
        num_classes, T, spiking_neuron or neuron, downsampling=downsampling, **sizes
    )
