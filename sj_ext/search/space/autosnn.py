"""AutoSNN's space: spiking blocks between fixed poolings."""

from __future__ import annotations

from ... import checks
from ...arguments import checked
from .space import Choice, Space

__all__ = ["CANDIDATES", "MACROS", "POOL", "autosnn"]

#: candidates of a slot in the order of the paper's codes; SCB: two convolutions, SRB: residual
CANDIDATES = ("skip", "scb3", "scb5", "srb3", "srb5")

#: what a slot that is not searched holds
POOL = "pool"

#: names of the slots' contents by macro architecture: searched, or pooled
MACROS = {
    "max_pooling": (False, True, False, False, True, False, False, True),
    "global_pooling": (False, True, False, False, True, False, False, False),
    "strided": (False,) * 8,
}


@checked
def autosnn(macro: str = "max_pooling", slots: tuple[bool, ...] | None = None) -> Space:
    """AutoSNN's space: five candidates in every slot that is no pooling; 3,125 architectures.

    Args:
        macro: ``'max_pooling'`` (the paper's choice), ``'global_pooling'`` (with a global average
            pooling before the classifier, whose neuron the input can hardly make fire), or
            ``'strided'`` (downsampling is searched too, with stride 2 in the blocks).
        slots: whether each slot is a pooling, in place of the macro architecture's eight.

    Raises:
        ValueError: ``macro`` is unknown.

    Source: Na et al., "AutoSNN: Towards Energy-Efficient Spiking Neural Networks", ICML 2022
    (arXiv 2201.12738).
    """
    checks.choice("macro", macro, tuple(MACROS))
    pooled = MACROS[macro] if slots is None else tuple(slots)
    return Space(
        f"autosnn/{macro}",
        {f"slot{i}": Choice((POOL,) if pool else CANDIDATES) for i, pool in enumerate(pooled)},
    )
