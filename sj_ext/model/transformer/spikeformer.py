"""Spikeformer (CT): a convolutional tokenizer that spikes, and attention over space and time.

The tokenizer is a chain of spiking residual blocks; the encoder behind it is an ordinary one with
softmax, layer normalisation and one neuron per block, and is not spike-driven.

Source: Li et al., "Spikeformer: A Novel Architecture for Training High-Performance Low-Latency
Spiking Neural Network" (arXiv 2211.10686).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ... import checks, host
from ...arguments import checked
from ...layer.attention.matrix_product import MatrixProduct
from ...layer.attention.space_time import SpaceTimeBlock
from ...layer.spiking import NeuronFactory, lif
from ...layer.stem_tokenizer import ConvTokenizer
from ...neuron.parametric_liaf import ParametricLIAFNode
from .backbone import SpikingTransformer, initialize_linear
from .published import PublishedNames, load_published
from .sized import sized

__all__ = [
    "NAMES",
    "load_published",
    "spikeformer",
    "spikeformer_dvs_cifar10",
    "spikeformer_dvs_gesture",
    "spikeformer_imagenet",
]

#: names of the public program
NAMES = PublishedNames(
    "Spikeformer",
    (
        (r"^model\.", ""),
        (r"^patch_embed\.conv_layers\.", "stem.blocks."),
        (r"\.residual_function\.([01])\.0\.0\.", lambda m: f".conv{int(m[1]) + 1}.conv."),
        (r"\.residual_function\.([01])\.0\.1\.", lambda m: f".conv{int(m[1]) + 1}.bn."),
        (r"\.residual_function\.([01])\.1\.", lambda m: f".neuron{int(m[1]) + 1}."),
        (r"\.shortcut\.1\.0\.0\.", ".shortcut.project.conv."),
        (r"\.shortcut\.1\.0\.1\.", ".shortcut.project.bn."),
        (r"\.shortcut\.1\.1\.", ".shortcut.neuron."),
        (r"^pos_embed", "body.embedding.position"),
        (r"^time_embed", "body.embedding.time"),
        (r"^blocks\.", "body.blocks."),
        (r"\.norm1\.", ".spatial_norm."),
        (r"\.temporal_norm1\.", ".temporal_norm."),
        (r"\.norm2\.", ".mlp_norm."),
        (r"(\d)\.attn\.", r"\1.spatial_attn."),
        (r"\.mlp\.mlp\.0\.0\.", ".fc1."),
        (r"\.mlp\.mlp\.1\.", ".neuron."),
        (r"\.mlp\.mlp\.2\.0\.", ".fc2."),
        (r"^attention_pool\.", "head.pool."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.linear.\1"),
    ),
)


class TokenEmbedding(nn.Module):
    """A map as tokens, with what is learned about each place and each step added.

    Args:
        dim: C.
        tokens: how many places the learned embedding has; another number is filled by the nearest.
        steps: the same for time.

    Shapes:
        ``[T, N, C, H, W]`` to ``[T, N, L, C]``, L = H W row by row.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, dim: int, tokens: int, steps: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, tokens, dim))
        self.time = nn.Parameter(torch.zeros(1, steps, dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(-2).mT
        time = _of_length(self.time, z.shape[0]).transpose(0, 1).unsqueeze(1)
        return z + _of_length(self.position, z.shape[-2]) + time


def _of_length(embedding: torch.Tensor, length: int) -> torch.Tensor:
    """``[1, L, C]`` to another length, each place from the nearest."""
    if embedding.shape[1] == length:
        return embedding
    return F.interpolate(embedding.mT, size=length, mode="nearest").mT


class PoolingHead(nn.Module):
    """Classifier of tokens, weighted by a softmax over all steps and places together.

    Args:
        dim: C.
        num_classes: at least 1.

    Shapes:
        ``[T, N, L, C]`` to ``[1, N, classes]``: the steps are joined.

    Raises:
        ValueError: ``num_classes`` is below 1.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        checks.integer("num_classes", num_classes, at_least=1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pool = nn.Linear(dim, 1)
        self.product = MatrixProduct()
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = self.norm(z).transpose(0, 1).flatten(1, 2)  # [N, T L, C]
        weights = self.pool(z).softmax(1)
        return self.linear(self.product((weights.mT, z)).squeeze(1)).unsqueeze(0)


@checked
def spikeformer(
    num_classes: int = 10,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    *,
    img_size: int = 128,
    strides: Sequence[int] = (2, 1, 2, 1, 2, 1),
    paired: bool = True,
    kernel_size: int = 3,
    padding: int | None = None,
    dim: int = 256,
    depth: int = 7,
    num_heads: int = 4,
    mlp_ratio: float = 2,
    in_channels: int = 2,
    drop_path: float = 0.1,
) -> SpikingTransformer:
    """Spikeformer of any size.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for, and how many the time embedding holds; other
            numbers of steps take the nearest.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`; by default with a
            learnable time constant, which is 2 first.
        img_size: height and width whose places the position embedding holds; other sizes take the
            nearest.
        strides: of the tokenizer's blocks, see :class:`~sj_ext.layer.ConvTokenizer`.
        paired: whether two blocks in a row have the same width.
        kernel_size: of the tokenizer's convolutions.
        padding: of the tokenizer's convolutions; half the kernel by default.
        dim: channels of the tokens.
        depth: number of encoder blocks.
        num_heads: divides ``dim``.
        mlp_ratio: hidden features of the MLP, over ``dim``.
        in_channels: 3 for images, 2 for events.
        drop_path: share of samples whose branches are left out in training, in the last block; it
            rises from 0 in the first.

    Shapes:
        as :class:`SpikingTransformer`, in step mode ``'m'`` only; the head joins the steps:
        ``[1, N, classes]``.

    Raises:
        ValueError: a size is out of range; the message names it.
    """
    neuron = spiking_neuron or lif(2.0, None, host.neuron.ParametricLIFNode)
    checks.integer("T", T, at_least=1)
    checks.integer("depth", depth, at_least=1)
    checks.number("drop_path", drop_path, at_least=0, below=1)
    stem = ConvTokenizer(
        in_channels,
        dim,
        strides,
        neuron,
        kernel_size=kernel_size,
        padding=padding,
        paired=paired,
    )
    if checks.integer("img_size", img_size, at_least=1) % stem.stride:
        raise ValueError(f"img_size must be a multiple of {stem.stride}, got {img_size}")
    body = nn.Sequential()
    body.add_module("embedding", TokenEmbedding(dim, (img_size // stem.stride) ** 2, T))
    body.add_module(
        "blocks",
        nn.Sequential(
            *(
                SpaceTimeBlock(
                    dim,
                    num_heads,
                    neuron,
                    mlp_ratio=mlp_ratio,
                    drop_path=drop_path * i / max(depth - 1, 1),
                )
                for i in range(depth)
            )
        ),
    )
    model = SpikingTransformer(
        stem, body, PoolingHead(dim, num_classes), T=T, in_channels=in_channels, published=NAMES
    )
    _initialize(model)
    return model


def _initialize(model: SpikingTransformer) -> None:
    initialize_linear(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    blocks = [module for module in model.modules() if isinstance(module, SpaceTimeBlock)]
    for block in blocks[1:]:
        nn.init.zeros_(block.temporal_fc.weight)


spikeformer_dvs_cifar10 = sized(
    spikeformer,
    "spikeformer_dvs_cifar10",
    "Spikeformer 7-3x2x3 for CIFAR10-DVS",
    num_classes=10,
)
spikeformer_dvs_gesture = sized(
    spikeformer,
    "spikeformer_dvs_gesture",
    "Spikeformer 7-5x3x1 for DVS128 Gesture",
    num_classes=11,
    T=16,
    strides=(2, 2, 2),
    paired=False,
    kernel_size=5,
)
spikeformer_imagenet = sized(
    spikeformer,
    "spikeformer_imagenet",
    "Spikeformer 7-3x2x4 for ImageNet, whose neurons pass graded potentials on",
    num_classes=1000,
    spiking_neuron=partial(ParametricLIAFNode, detach_reset=True),
    img_size=224,
    strides=(2, 1, 2, 1, 2, 1, 2, 1),
    dim=512,
    num_heads=8,
    mlp_ratio=3,
    in_channels=3,
)
