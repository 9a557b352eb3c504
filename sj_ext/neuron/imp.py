"""Host neurons with a learnable initial potential: the named ones, and the class of any other.

Source: "Rethinking the Membrane Dynamics and Optimization Objectives of Spiking Neural
Networks", NeurIPS 2024.
"""

from __future__ import annotations

import functools
import inspect
import threading
from typing import Any

from torch import nn

from .. import host
from .initial_potential import OWN_KEYWORDS, LearnableInitialPotential

__all__ = [
    "IMPIFNode",
    "IMPLIFNode",
    "IMPParametricLIFNode",
    "with_learnable_imp",
]


class IMPIFNode(LearnableInitialPotential, host.neuron.IFNode):
    r"""IF neuron with a learnable initial membrane potential.

    :math:`H[t] = V[t-1] + X[t]`, :math:`V[0] = \mathrm{squash}(\theta)`; spikes and reset as the
    host's ``IFNode``.

    Args:
        *args: the arguments of the host's ``IFNode``, in its order and with its defaults.
        imp_shape, imp_init, imp_squash, channel_axis: see :class:`LearnableInitialPotential`.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``.

    Raises:
        ValueError: an argument out of range, or an input whose shape does not go with theta's.

    Source: IMP-SNN, NeurIPS 2024.
    """


class IMPLIFNode(LearnableInitialPotential, host.neuron.LIFNode):
    r"""LIF neuron with a learnable initial membrane potential.

    :math:`H[t] = V[t-1] + (X[t] - (V[t-1] - V_{reset})) / \tau` (``decay_input=True``),
    :math:`V[0] = \mathrm{squash}(\theta)`; spikes and reset as the host's ``LIFNode``.

    Args:
        *args: the arguments of the host's ``LIFNode``, in its order and with its defaults.
        imp_shape, imp_init, imp_squash, channel_axis: see :class:`LearnableInitialPotential`.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``.

    Raises:
        ValueError: an argument out of range, or an input whose shape does not go with theta's.

    Source: IMP-SNN, NeurIPS 2024.
    """


class IMPParametricLIFNode(LearnableInitialPotential, host.neuron.ParametricLIFNode):
    r"""LIF neuron with a learnable time constant and a learnable initial membrane potential.

    As :class:`IMPLIFNode` with :math:`1/\tau = \mathrm{sigmoid}(w)`, w a parameter.

    Args:
        *args: the arguments of the host's ``ParametricLIFNode``, in its order and with its
            defaults.
        imp_shape, imp_init, imp_squash, channel_axis: see :class:`LearnableInitialPotential`.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``.

    Raises:
        ValueError: an argument out of range, or an input whose shape does not go with theta's.

    Source: IMP-SNN, NeurIPS 2024; Fang et al., "Incorporating Learnable Membrane Time Constant
    to Enhance Learning of Spiking Neural Networks", ICCV 2021.
    """


_NAMED = {
    host.neuron.IFNode: IMPIFNode,
    host.neuron.LIFNode: IMPLIFNode,
    host.neuron.ParametricLIFNode: IMPParametricLIFNode,
}


def with_learnable_imp(node_class: type) -> type:
    """The class of ``node_class`` with a learnable initial potential.

    For any neuron, of either host or of the user, whose memory ``v`` starts as one number. The new
    class takes the arguments of ``node_class`` and then, as keywords, those of
    :class:`LearnableInitialPotential`. IF, LIF and PLIF give the named classes of this module.

    Args:
        node_class: a subclass of the host's ``base.MemoryModule``.

    Returns:
        A subclass of ``node_class``, the same one at every call. Its objects pickle and copy.

    Raises:
        TypeError: ``node_class`` is not a stateful neuron class, or one of online learning (OTTT,
            SLTT), which detaches the potential at every step, so that an initial one would never
            learn. A neuron whose ``v`` does not start as one number is refused when an object is
            made, since only then it shows.
    """
    if not (isinstance(node_class, type) and issubclass(node_class, host.base.MemoryModule)):
        raise TypeError(
            f"node_class must be a neuron class with memories (a subclass of "
            f"base.MemoryModule), got {node_class!r}"
        )
    with _MAKING:  # two threads that ask at once get one class
        return _learnable(node_class)


_MAKING = threading.RLock()


@functools.cache
def _learnable(node_class: type) -> type:
    if issubclass(node_class, host.ONLINE_NEURONS):
        raise TypeError(
            f"node_class {node_class.__name__} detaches its potential at every step (online "
            f"learning), so that a learnable initial potential would never get a gradient"
        )
    if issubclass(node_class, LearnableInitialPotential):
        return node_class
    if node_class in _NAMED:
        return _NAMED[node_class]
    bases: tuple[type, ...] = (LearnableInitialPotential, node_class)
    return type(
        f"IMP{node_class.__name__}",
        bases,
        {
            "__doc__": f"{node_class.__name__} with a learnable initial membrane potential.",
            "__module__": __name__,
            "__reduce_ex__": _reduce_made_class,
            "_node_class": node_class,
        },
    )


def _reduce_made_class(node: Any, protocol: int) -> tuple[Any, ...]:
    """Pickle an object of a made class by the class that it was made from."""
    return _new_of_made_class, (node._node_class,), node.__dict__


def _new_of_made_class(node_class: type) -> nn.Module:
    made = with_learnable_imp(node_class)
    node: nn.Module = made.__new__(made)  # type: ignore[call-overload]
    return node


def _show_host_signature(cls: type, host_class: type) -> None:
    """Let ``help`` and editors show the host's arguments before the keywords of this module."""
    own = inspect.signature(LearnableInitialPotential).parameters
    keywords = [own[name] for name in OWN_KEYWORDS]
    hosts = inspect.signature(host_class).parameters.values()
    cls.__signature__ = inspect.Signature([*hosts, *keywords])  # type: ignore[attr-defined]


for _host_class, _cls in _NAMED.items():
    _show_host_signature(_cls, _host_class)
