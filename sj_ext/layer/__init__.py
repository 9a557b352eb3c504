"""Layers: the temporally reversible multi-level cell and weight-standardised convolution."""

from .scaled_ws import ScaledWSConv2d

__all__ = ["ScaledWSConv2d"]
