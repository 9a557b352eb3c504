"""Layers: the temporally reversible cell, standardised convolutions, parts of transformers."""

from . import attention, mixer
from .attention import SSA
from .conv_bn import ConvBN
from .fuse import Fusable, fuse
from .mlp import SpikingMLP
from .residual import ResidualBlock
from .reversible_sequence import ReversibleSequence
from .scaled_ws import ScaledWSConv2d
from .stem import ConvStem
from .stem_scs import SCS
from .temporal_reversible import TemporalReversible

__all__ = [
    "SCS",
    "SSA",
    "ConvBN",
    "ConvStem",
    "Fusable",
    "ResidualBlock",
    "ReversibleSequence",
    "ScaledWSConv2d",
    "SpikingMLP",
    "TemporalReversible",
    "attention",
    "fuse",
    "mixer",
]
