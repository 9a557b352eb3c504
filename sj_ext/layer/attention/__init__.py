"""Attention of spikes: one idea a file."""

from .dssa import DSSA
from .product import SpikeProduct, spike_product
from .sdsa import SDSA1, SDSA3
from .space_time import SoftmaxAttention, SpaceTimeBlock
from .ssa import SSA

__all__ = [
    "DSSA",
    "SDSA1",
    "SDSA3",
    "SSA",
    "SoftmaxAttention",
    "SpaceTimeBlock",
    "SpikeProduct",
    "spike_product",
]
