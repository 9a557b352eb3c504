"""Named constructors: one builder, the sizes that a paper publishes under a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ...layer.spiking import NeuronFactory

__all__ = ["sized"]


def sized(
    builder: Callable[..., Any],
    name: str,
    what: str,
    *,
    num_classes: int = 1000,
    T: int = 4,
    spiking_neuron: NeuronFactory | None = None,
    **sizes: Any,
) -> Callable[..., Any]:
    """A constructor ``name(num_classes, T, spiking_neuron, **changes)`` with published sizes.

    Args:
        builder: the family's constructor.
        name: the new one's name, under which its module holds it.
        what: the first line of its docstring, without a full stop.
        num_classes, T, spiking_neuron: its defaults.
        **sizes: what it gives to the builder unless its caller does.
    """
    neuron, classes, steps = spiking_neuron, num_classes, T

    def construct(
        num_classes: int = classes,
        T: int = steps,
        spiking_neuron: NeuronFactory | None = None,
        **changes: Any,
    ) -> nn.Module:
        given = neuron if spiking_neuron is None else spiking_neuron
        return builder(num_classes, T, given, **(sizes | changes))

    construct.__name__ = construct.__qualname__ = name
    construct.__module__ = builder.__module__
    construct.__doc__ = (
        f"{what}; the arguments of :func:`{builder.__name__}`.\n\n"
        f"Shapes:\n    those of :func:`{builder.__name__}`.\n\n"
        f"Raises:\n    ValueError: as :func:`{builder.__name__}`.\n"
    )
    return construct
