"""Neurons: learnable initial potential, turn-off, turn-on and multi-level firing."""

from .imp import (
    IMPIFNode,
    IMPLIFNode,
    IMPParametricLIFNode,
    LearnableInitialPotential,
    with_learnable_imp,
)
from .multi_level import MultiLevelFiringNode
from .turn_off import TurnOffNode

__all__ = [
    "IMPIFNode",
    "IMPLIFNode",
    "IMPParametricLIFNode",
    "LearnableInitialPotential",
    "MultiLevelFiringNode",
    "TurnOffNode",
    "with_learnable_imp",
]
