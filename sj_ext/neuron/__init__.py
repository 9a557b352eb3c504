"""Neurons: learnable initial potential, turn-off, turn-on, multi-level and signed firing."""

from .imp import IMPIFNode, IMPLIFNode, IMPParametricLIFNode, with_learnable_imp
from .initial_potential import LearnableInitialPotential
from .multi_level import MultiLevelFiringNode
from .neg_if import NegIFNode
from .parametric_liaf import ParametricLIAFNode
from .turn_off import TurnOffNode
from .turn_on import TurnOnNode

__all__ = [
    "IMPIFNode",
    "IMPLIFNode",
    "IMPParametricLIFNode",
    "LearnableInitialPotential",
    "MultiLevelFiringNode",
    "NegIFNode",
    "ParametricLIAFNode",
    "TurnOffNode",
    "TurnOnNode",
    "with_learnable_imp",
]
