"""SWformer: tokens mixed by wavelets whose products fire, in place of attention.

Source: Fang et al., "Spiking Wavelet Transformer", ECCV 2024 (arXiv 2403.11138). Height and width
of the tokens' map are equal powers of two: 256 pixels for ImageNet, not 224.
"""

from __future__ import annotations

from ... import checks
from ...arguments import checked
from ...layer.mixer.frequency import FrequencyMixer
from ...layer.mlp import SpikingMLP
from ...layer.residual import ResidualBlock
from ...layer.spiking import NeuronFactory, lif
from ...layer.stem import ConvStem
from .backbone import Head, SpikingTransformer, pyramid, stacked
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "load_published",
    "swformer",
    "swformer_2_256_event",
    "swformer_2_384_cifar",
    "swformer_4_384_cifar",
    "swformer_6_512",
    "swformer_8_512",
]

#: words of the stem's stages by stride
STAGES = {4: ("CN", "CN", "CNP", "CP"), 16: ("CNP", "CNP", "CNP", "CP")}

NAMES = PublishedNames(
    "SWformer",
    (
        (r"^patch_embed\.proj_(conv|bn)\.", r"stem.stages.0.project.\1."),
        (r"^patch_embed\.proj_(conv|bn)(\d)\.", r"stem.stages.\2.project.\1."),
        (r"^patch_embed\.rpe_(conv|bn)\.", r"stem.position.project.\1."),
        (r"^block\.(\d+)\.(?:mixer|attn)\.", r"body.\1.mixer."),
        (r"^block\.", "body."),
        (r"\.haar_weight$", ".weight"),
        (r"\.haar_forward_bn\.", ".bn_forward."),
        (r"\.haar_(?:multiply_)?bn\.", ".bn_mixed."),
        (r"\.haar_inverse_bn\.", ".bn_inverse."),
        (r"\.conv1_bn\.", ".bn1."),
        (r"\.conv2_bn\.", ".bn3."),
        (r"\.mixer\.conv2\.", ".mixer.conv3."),
        (r"\.mlp\.fc(\d)_(conv|bn)\.", r".mlp.fc\1.\2."),
        (r"^head\.", "head.linear."),
    ),
)


@checked
def swformer(
    num_classes: int = 10,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    depth: int = 4,
    dim: int = 384,
    blocks: int = 4,
    mlp_ratio: float = 4,
    in_channels: int = 3,
    patch_size: int = 4,
    v_threshold: float = 1.0,
    events: bool = False,
    firing_head: bool = False,
) -> SpikingTransformer:
    """SWformer of any size.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the unsigned neurons, see :mod:`sj_ext.layer.spiking`.
        depth: number of blocks of the network.
        dim: channels of the tokens, a multiple of 8.
        blocks: blocks of channels that the mixer mixes within, see
            :class:`~sj_ext.layer.FrequencyMixer`.
        mlp_ratio: hidden channels of the MLP, over ``dim``.
        in_channels: 3 for images, 2 for events.
        patch_size: 4 (CIFAR) or 16 (ImageNet, events).
        v_threshold: positive threshold of the signed neurons; 0.5 in two of the checkpoints.
        events: the mixer's variant for event frames.
        firing_head: whether a neuron stands before the classifier, as for ImageNet.

    Shapes:
        as :class:`SpikingTransformer`.

    Raises:
        ValueError: a size is out of range; the message names it.
    """
    checks.choice("patch_size", patch_size, tuple(STAGES))
    stem = ConvStem(in_channels, pyramid(dim), STAGES[patch_size], spiking_neuron, position="NC")
    in_head = (spiking_neuron or lif()) if checks.flag("firing_head", firing_head) else None

    def block(hidden: int) -> ResidualBlock:
        return ResidualBlock(
            mixer=FrequencyMixer(
                dim, blocks, spiking_neuron, v_threshold=v_threshold, events=events
            ),
            mlp=SpikingMLP(dim, hidden, spiking_neuron),
        )

    return stacked(
        stem,
        block,
        Head(dim, num_classes, in_head),
        depth=depth,
        dim=dim,
        mlp_ratio=mlp_ratio,
        T=T,
        in_channels=in_channels,
        published=NAMES,
    )


swformer_4_384_cifar = sized(
    swformer, "swformer_4_384_cifar", "SWformer 4-384 for CIFAR", num_classes=10
)
swformer_2_384_cifar = sized(
    swformer, "swformer_2_384_cifar", "SWformer 2-384 for CIFAR", num_classes=10, depth=2
)
swformer_2_256_event = sized(
    swformer,
    "swformer_2_256_event",
    "SWformer 2-256 for event frames",
    num_classes=10,
    T=16,
    depth=2,
    dim=256,
    in_channels=2,
    patch_size=16,
    events=True,
)
swformer_6_512 = sized(
    swformer,
    "swformer_6_512",
    "SWformer 6-512 for ImageNet at 256 pixels",
    depth=6,
    dim=512,
    blocks=2,
    patch_size=16,
    firing_head=True,
)
swformer_8_512 = sized(
    swformer,
    "swformer_8_512",
    "SWformer 8-512 for ImageNet at 256 pixels",
    depth=8,
    dim=512,
    blocks=2,
    patch_size=16,
    firing_head=True,
)
