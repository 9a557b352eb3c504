"""The host's neurons and the plugin's, and how each is made: what several test files go through."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from sj_ext import host
from sj_ext.neuron import (
    IMPIFNode,
    IMPLIFNode,
    IMPParametricLIFNode,
    MultiLevelFiringNode,
    NegIFNode,
    ParametricLIAFNode,
    TurnOffNode,
    TurnOnNode,
    with_learnable_imp,
)
from sj_ext.surrogate import ClosedRect, DSpike

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


@dataclass(frozen=True)
class Contract:
    """A neuron of the plugin, and what tells it from the others; see ``test_contract.py``."""

    make: Callable[..., torch.nn.Module]
    #: the host's class that runs it, whose errors and limits are its own
    runs_on: type | None = None
    #: whether it has a potential, and with it ``v_seq``
    potential: bool = True
    #: axes of the potential before those of the input: levels
    levels: tuple[int, ...] = ()
    #: whether it runs under ``torch.vmap`` where the host's nodes do (2.x)
    vmap: bool = False
    #: whether its output is a potential, not spikes
    graded: bool = False
    #: whether it fires below 0 too
    signed: bool = False


def _imp(node_class, **kwargs):
    return partial(make, with_learnable_imp(node_class), **kwargs)


_neuron = host.neuron
#: every neuron of the plugin, in the forms that run different code: a new one is one line here
PLUGIN = {
    "IMPIFNode": Contract(IMPIFNode, _neuron.IFNode, vmap=True),
    "IMPIFNode layer": Contract(partial(IMPIFNode, imp_shape="layer"), _neuron.IFNode, vmap=True),
    "IMPLIFNode": Contract(IMPLIFNode, _neuron.LIFNode, vmap=True),
    "IMPLIFNode neuron": Contract(
        partial(IMPLIFNode, v_reset=None, imp_shape="neuron", imp_squash=torch.tanh),
        _neuron.LIFNode,
        vmap=True,
    ),
    "IMPParametricLIFNode": Contract(
        partial(IMPParametricLIFNode, imp_shape="spatial"), _neuron.ParametricLIFNode, vmap=True
    ),
    "imp QIFNode": Contract(_imp(_neuron.QIFNode), _neuron.QIFNode, vmap=True),
    "imp EIFNode": Contract(_imp(_neuron.EIFNode), _neuron.EIFNode, vmap=True),
    "imp TurnOnNode": Contract(_imp(TurnOnNode)),
    "imp MultiLevelFiringNode": Contract(_imp(MultiLevelFiringNode), levels=(3,), vmap=True),
    "MultiLevelFiringNode": Contract(MultiLevelFiringNode, levels=(3,), vmap=True),
    "MultiLevelFiringNode soft": Contract(
        partial(MultiLevelFiringNode, v_reset=None, thresholds=(0.5, 1.0)), levels=(2,), vmap=True
    ),
    "ParametricLIAFNode": Contract(ParametricLIAFNode, graded=True, vmap=True),
    "ParametricLIAFNode soft": Contract(
        partial(ParametricLIAFNode, init_tau=1.5, v_reset=None, detach_reset=True),
        graded=True,
        vmap=True,
    ),
    "NegIFNode": Contract(NegIFNode, vmap=True, signed=True),
    "NegIFNode soft": Contract(
        partial(NegIFNode, v_reset=None, detach_reset=True), vmap=True, signed=True
    ),
    "TurnOffNode": Contract(TurnOffNode, potential=False, vmap=True),
    "TurnOffNode DSpike": Contract(
        partial(TurnOffNode, surrogate_function=DSpike()), potential=False, vmap=True
    ),
    "TurnOnNode": Contract(TurnOnNode),
    "TurnOnNode channel": Contract(partial(TurnOnNode, decay=0.8, decay_shape="channel")),
    "TurnOnNode fixed": Contract(partial(TurnOnNode, decay=-0.7, learnable_decay=False)),
    "TurnOnNode closed": Contract(partial(TurnOnNode, surrogate_function=ClosedRect())),
    "TurnOnNode DSpike": Contract(partial(TurnOnNode, surrogate_function=DSpike())),
}
