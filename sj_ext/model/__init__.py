"""Models: T-RevSNN."""

from . import trevsnn
from .trevsnn import TRevSNN, trevsnn_dvs, trevsnn_small, trevsnn_tiny

__all__ = ["TRevSNN", "trevsnn", "trevsnn_dvs", "trevsnn_small", "trevsnn_tiny"]
