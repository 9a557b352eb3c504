"""Attention of spikes: one idea a file."""

from .product import SpikeProduct, spike_product
from .sdsa import SDSA1, SDSA3
from .ssa import SSA

__all__ = ["SDSA1", "SDSA3", "SSA", "SpikeProduct", "spike_product"]
