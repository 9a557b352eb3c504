"""Attention of spikes: one idea a file."""

from .product import SpikeProduct, spike_product
from .ssa import SSA

__all__ = ["SSA", "SpikeProduct", "spike_product"]
