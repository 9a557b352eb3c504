"""Where the neurons of a network come from: a factory that every part asks for as many as it needs.

``spiking_neuron=`` of a layer or model is called without arguments, once per population, and gives
a new neuron of either host or of this package: a class, or a class with arguments bound by
``functools.partial``. An attention then puts its own threshold into the neuron that fires on its
product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .. import checks, host

__all__ = ["NeuronFactory", "lif", "new_neuron"]

#: makes a new neuron each time it is called
NeuronFactory = Callable[[], nn.Module]


def lif(
    tau: float = 2.0, surrogate_function: Any = None, node: type[nn.Module] | None = None
) -> NeuronFactory:
    """The neuron of the published programs: leaky, hard reset that carries no gradient.

    Args:
        tau: membrane time constant; the first one where it is learnable.
        surrogate_function: the host's ``Sigmoid(alpha=4)`` by default.
        node: the host's ``LIFNode`` by default; ``ParametricLIFNode`` gets ``init_tau``.
    """
    node = host.neuron.LIFNode if node is None else node
    learnable = issubclass(node, host.neuron.ParametricLIFNode)
    return partial(
        node,
        **{"init_tau" if learnable else "tau": tau},
        detach_reset=True,
        surrogate_function=surrogate_function or host.surrogate.Sigmoid(alpha=4.0),
    )


def new_neuron(spiking_neuron: NeuronFactory | None, v_threshold: float | None = None) -> nn.Module:
    """A neuron from the factory, :func:`lif` by default, with another threshold if one is given.

    Raises:
        TypeError: ``spiking_neuron`` cannot be called without arguments or makes no module, or its
            neuron has no threshold to set.
    """
    factory = lif() if spiking_neuron is None else spiking_neuron
    wanted = "a function that makes a new neuron, such as a neuron's class"
    if isinstance(factory, nn.Module):
        raise TypeError(f"spiking_neuron must be {wanted}, got a {type(factory).__name__} itself")
    checks.function("spiking_neuron", factory, wanted)
    node = factory()
    if not isinstance(node, nn.Module):
        raise TypeError(f"spiking_neuron must be {wanted}, but it makes a {type(node).__name__}")
    if v_threshold is not None:
        if not hasattr(node, "v_threshold"):
            raise TypeError(
                f"spiking_neuron must make neurons with a v_threshold, because attention fires at "
                f"{v_threshold}; a {type(node).__name__} has none"
            )
        setattr(node, "v_threshold", v_threshold)  # noqa: B010 - any module may have it
    return node
