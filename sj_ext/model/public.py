"""The public names of :mod:`sj_ext.model`."""

from . import revsnn, transformer, trevsnn
from .trevsnn import TRevSNN, trevsnn_dvs, trevsnn_small, trevsnn_tiny
from .trevsnn.reparameterization import MapInput, map_inputs, reparameterize

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
