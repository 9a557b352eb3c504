"""Attention of spikes: one idea a file."""

from .dista import DISTAttention, WindowedConvBN
from .dssa import DSSA
from .local import LocalSSA
from .matrix_product import MatrixProduct
from .product import SpikeProduct
from .sdsa import SDSA1, SDSA3
from .space_time import SoftmaxAttention, SpaceTimeBlock
from .ssa import SSA
from .stsa import STSA, TemporalProduct

__all__ = [
    "DSSA",
    "SDSA1",
    "SDSA3",
    "SSA",
    "STSA",
    "DISTAttention",
    "LocalSSA",
    "MatrixProduct",
    "SoftmaxAttention",
    "SpaceTimeBlock",
    "SpikeProduct",
    "TemporalProduct",
    "WindowedConvBN",
]
