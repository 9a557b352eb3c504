"""Models: T-RevSNN, RevSNN, spiking transformers."""

from . import revsnn, transformer, trevsnn
from .reparameterization import MapInput, map_inputs, reparameterize
from .trevsnn import TRevSNN, trevsnn_dvs, trevsnn_small, trevsnn_tiny

__all__ = [
    "MapInput",
    "TRevSNN",
    "map_inputs",
    "reparameterize",
    "revsnn",
    "transformer",
    "trevsnn",
    "trevsnn_dvs",
    "trevsnn_small",
    "trevsnn_tiny",
]
