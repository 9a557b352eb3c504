"""Attention of spikes: one idea a file."""

from .dssa import DSSA
from .matrix_product import MatrixProduct
from .product import SpikeProduct
from .sdsa import SDSA1, SDSA3
from .space_time import SoftmaxAttention, SpaceTimeBlock
from .ssa import SSA

__all__ = [
    "DSSA",
    "SDSA1",
    "SDSA3",
    "SSA",
    "MatrixProduct",
    "SoftmaxAttention",
    "SpaceTimeBlock",
    "SpikeProduct",
]
