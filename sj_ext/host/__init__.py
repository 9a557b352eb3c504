"""The host: the one package that knows which generation of SpikingJelly is installed.

Two generations are supported (see :mod:`.generation`), and everything else is written once against
the names below.
"""

from __future__ import annotations

from spikingjelly.activation_based import base, functional, layer, model, neuron, surrogate

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
    "FunctionalNode",
    "HostBackend",
    "States",
    "SurrogateFunction",
    "base",
    "functional",
    "layer",
    "model",
    "neuron",
    "surrogate",
]

#: whether a potential of another shape than the input's starts afresh; if not, the node raises
RESTARTS_ON_NEW_SHAPE = GENERATION == 2

#: neurons that detach the potential they carry at every step, so that nothing before it learns
ONLINE_NEURONS = tuple(
    getattr(neuron, name) for name in ("OTTTLIFNode", "SLTTLIFNode") if hasattr(neuron, name)
)
