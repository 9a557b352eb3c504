"""RevSNN: networks of reversible blocks in depth, convolutional and with self-attention.

Source: Zhang and Zhang, "Memory-efficient reversible spiking neural networks", AAAI 2024 (arXiv
2312.07922).
"""

from ..transformer.published import load_published
from .former import revsformer, revsformer_2_256_dvs, revsformer_2_384, revsformer_4_384
from .resnet import (
    RevSResNet,
    revsresnet,
    revsresnet21,
    revsresnet24_dvs,
    revsresnet37,
    revsresnet109,
)

__all__ = [
    "RevSResNet",
    "load_published",
    "revsformer",
    "revsformer_2_256_dvs",
    "revsformer_2_384",
    "revsformer_4_384",
    "revsresnet",
    "revsresnet21",
    "revsresnet24_dvs",
    "revsresnet37",
    "revsresnet109",
]
