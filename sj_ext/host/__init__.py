"""The host: the one package that knows which generation of SpikingJelly is installed.

Two generations are supported (see :mod:`.generation`), and everything else is written once against
the names below.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from spikingjelly.activation_based import (
    ann2snn,
    base,
    functional,
    layer,
    model,
    neuron,
    surrogate,
)

from .backend import BackendContract
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
    "functional",
    "layer",
    "model",
    "neuron",
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

#: what the host's converter takes as a recipe; 0.0.0.0.14 has none
ConversionRecipe: type = getattr(ann2snn, "FXConversionRecipe", object)
