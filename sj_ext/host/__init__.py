"""The host: the one package that knows which generation of SpikingJelly is installed.

Two generations are supported (see :mod:`.generation`), and everything else is written once against
the names below.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from spikingjelly.activation_based import (
    base,
    functional,
    layer,
    neuron,
    surrogate,
)

if TYPE_CHECKING:
    from spikingjelly.activation_based import ann2snn

    #: what the host's converter takes as a recipe; 0.0.0.0.14 has none
    ConversionRecipe: type

from .backend import BackendContract, own_surrogate
from .checked import checked_arguments
from .generation import GENERATION, VERSION
from .node import States

if GENERATION == 2:
    from .generation2 import FunctionalNode, HostBackend, SurrogateFunction
else:
    from .generation1 import FunctionalNode, HostBackend, SurrogateFunction

__all__ = [
    "GENERATION",
    "ONLINE_NEURONS",
    "RESTARTS_ON_NEW_SHAPE",
    "VERSION",
    "BackendContract",
    "ConversionRecipe",
    "FunctionalNode",
    "HostBackend",
    "States",
    "SurrogateFunction",
    "ann2snn",
    "base",
    "checked_arguments",
    "functional",
    "layer",
    "neuron",
    "own_surrogate",
    "structure_changed",
    "surrogate",
]

#: whether a potential of another shape than the input's starts afresh; if not, the node raises
RESTARTS_ON_NEW_SHAPE = GENERATION == 2

#: neurons that detach the potential they carry at every step, so that nothing before it learns
ONLINE_NEURONS = tuple(
    getattr(neuron, name) for name in ("OTTTLIFNode", "SLTTLIFNode") if hasattr(neuron, name)
)

#: to be called after modules of a network were exchanged: 2.x remembers what there is to reset
structure_changed: Callable[[torch.nn.Module], None] = getattr(
    functional, "invalidate_reset_cache", lambda net: None
)


def __getattr__(name: str) -> Any:
    """The host's converter, which takes a quarter of a second to import, when it is asked for."""
    if name == "ann2snn":
        return importlib.import_module("spikingjelly.activation_based.ann2snn")
    if name == "ConversionRecipe":  # 0.0.0.0.14 has none
        return getattr(__getattr__("ann2snn"), "FXConversionRecipe", object)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
