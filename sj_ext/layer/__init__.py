"""Layers: the temporally reversible multi-level cell and weight-standardised convolution."""

from .scaled_ws import ScaledWSConv2d
from .temporal_reversible import TemporalReversible

__all__ = ["ScaledWSConv2d", "TemporalReversible"]
