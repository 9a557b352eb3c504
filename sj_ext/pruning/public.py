"""The public names of :mod:`sj_ext.pruning`."""

from . import resources
from .baselines import (
    GlobalMagnitudePruner,
    IterativeMagnitudePruner,
    LayerMagnitudePruner,
    compress_then_finetune,
)
from .export import export_csr
from .finished import density, hand_over, hold_masks, make_permanent
from .importance import Importance, Magnitude, Taylor
from .legacy import plain_state_dict
from .minimax import MinimaxPruner, Rates
from .pruner import Pruner
from .report import History
from .resources import LatencyTable, Resource, measure_latency, resource
from .schedule import Schedule, Stage
from .shrinking import carry_over, shrink

__all__ = [
    "GlobalMagnitudePruner",
    "History",
    "Importance",
    "IterativeMagnitudePruner",
    "LatencyTable",
    "LayerMagnitudePruner",
    "Magnitude",
    "MinimaxPruner",
    "Pruner",
    "Rates",
    "Resource",
    "Schedule",
    "Stage",
    "Taylor",
    "carry_over",
    "compress_then_finetune",
    "density",
    "export_csr",
    "hand_over",
    "hold_masks",
    "make_permanent",
    "measure_latency",
    "plain_state_dict",
    "resource",
    "resources",
    "shrink",
]
