"""The host's neurons, and how each is made: what several test files go through."""

import torch

from sj_ext import host

#: constructor arguments by class name, where the defaults do not do
ARGUMENTS = {
    "LIAFNode": {"act": torch.relu, "threshold_related": True},
    "MPBNLIFNode": {"out_features": 5},
    "MPBNBaseNode": {"out_features": 5},
    "SimpleLIFNode": {"tau": 2.0, "decay_input": True},
}
#: classes whose own construction fails on a host, with the host's own error
UNMADE = {1: {"LIAFNode"}, 2: set()}
#: abstract bases
BASES = {
    "BaseNode",
    "AdaptBaseNode",
    "MPBNBaseNode",
    "SimpleBaseNode",
    "NonSpikingBaseNode",
    "_OnlineLIFNode",
}


def stateful_classes():
    """Every concrete neuron class of the host that has memories, the plugin's own left out."""
    found = {}
    for name, cls in vars(host.neuron).items():
        if not (isinstance(cls, type) and issubclass(cls, host.base.MemoryModule)):
            continue
        if name in BASES | UNMADE[host.GENERATION] or cls.__module__.startswith("sj_ext"):
            continue
        found[name] = cls
    return found


def make(cls, **kwargs):
    """An object of a host class with what its constructor cannot do without."""
    return cls(**{**ARGUMENTS.get(cls.__name__, {}), **kwargs})


def has_scalar_potential(cls):
    """Whether the class starts its memory ``v`` as one number."""
    try:
        node = make(cls)
    except TypeError:  # needs more than this file knows, such as FlexSN's core function
        return False
    return isinstance(node._memories_rv.get("v"), float)
