"""Layers: the temporally reversible cell, standardised convolutions, parts of transformers."""

from . import attention, mixer
from .attention import DSSA, SDSA1, SDSA3, SSA, STSA, DISTAttention, LocalSSA
from .conv_bn import ConvBN
from .downsampling import Downsampling
from .fuse import Fusable, fuse
from .gwffn import GWFFN
from .local_block import FiringConv, LocalBlock
from .mixer import FrequencyMixer, LinearMixer
from .mlp import SpikingMLP
from .rep_conv import RepConv, RepConvBN
from .residual import ResidualBlock
from .reversible_sequence import ReversibleSequence
from .scaled_ws import ScaledWSConv2d
from .sep_conv import SepConv
from .sew_block import SEWBlock
from .stem import ConvStem
from .stem_scs import SCS
from .stem_tokenizer import ConvTokenizer
from .temporal_reversible import TemporalReversible

__all__ = [
    "DSSA",
    "GWFFN",
    "SCS",
    "SDSA1",
    "SDSA3",
    "SSA",
    "STSA",
    "ConvBN",
    "ConvStem",
    "ConvTokenizer",
    "DISTAttention",
    "Downsampling",
    "FiringConv",
    "FrequencyMixer",
    "Fusable",
    "LinearMixer",
    "LocalBlock",
    "LocalSSA",
    "RepConv",
    "RepConvBN",
    "ResidualBlock",
    "ReversibleSequence",
    "SEWBlock",
    "ScaledWSConv2d",
    "SepConv",
    "SpikingMLP",
    "TemporalReversible",
    "attention",
    "fuse",
    "mixer",
]
