"""sj_ext: learnable initial potentials, temporally reversible training and minimax pruning.

``import sj_ext`` beside ``spikingjelly`` puts its names into SpikingJelly's own namespaces:
``neuron.IMPLIFNode``, ``layer.TemporalReversible``, ``functional.lts_cross_entropy`` and so on; see
:func:`registered`. The same objects are importable from here.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import (
    analysis,
    checkpoint,
    functional,
    layer,
    loss,
    memory,
    model,
    neuron,
    pruning,
    search,
    surrogate,
)
from ._version import __version__
from .explicit_state import ExplicitState
from .materialization import materialize
from .parameters import no_weight_decay, parameter_groups
from .registration import register, registered, unregister
from .swap import swap_neurons

if TYPE_CHECKING:
    from . import ann2snn

__all__ = [
    "ExplicitState",
    "__version__",
    "analysis",
    "ann2snn",
    "checkpoint",
    "functional",
    "layer",
    "loss",
    "materialize",
    "memory",
    "model",
    "neuron",
    "no_weight_decay",
    "parameter_groups",
    "pruning",
    "register",
    "registered",
    "search",
    "surrogate",
    "swap_neurons",
    "unregister",
]

#: modules that are loaded when they are asked for, since they take others with them
_LATE = ("ann2snn",)


def __getattr__(name: str) -> ModuleType:
    if name in _LATE:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()
