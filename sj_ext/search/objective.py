"""What a search is after: a value to maximise, and limits that hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import checks
from ..arguments import checked
from .space import Architecture

__all__ = ["Constraint", "Evaluate", "spike_aware"]

#: says how good an architecture is, or what it costs
Evaluate = Callable[[Architecture], float]


def spike_aware(accuracy: float, spikes: float, reference: float, exponent: float = -0.08) -> float:
    r"""AutoSNN's fitness: accuracy, scaled down where more spikes are fired than usual.

    .. math::
        f = \mathrm{accuracy} \cdot (\mathrm{spikes} / \mathrm{reference})^{\lambda}

    Args:
        accuracy: in any unit.
        spikes: per image.
        reference: mean number of spikes per image of the supernet's paths, in the same setting.
        exponent: :math:`\lambda`, at most 0; 0 looks at the accuracy alone.

    Raises:
        ValueError: ``spikes`` or ``reference`` is not above 0, or ``exponent`` is above 0.

    Source: Na et al., "AutoSNN", ICML 2022 (arXiv 2201.12738).
    """
    spikes = checks.number("spikes", spikes, above=0)
    reference = checks.number("reference", reference, above=0)
    exponent = checks.number("exponent", exponent, at_most=0)
    return checks.number("accuracy", accuracy) * (spikes / reference) ** exponent


@checked
@dataclass(frozen=True)
class Constraint:
    """A cost that may not be above a limit.

    Args:
        cost: of an architecture.
        limit: the most that it may be.
        name: of the cost, for messages.

    Raises:
        TypeError: ``cost`` is no function or ``limit`` no number.
    """

    cost: Evaluate
    limit: float
    name: str = "cost"

    def __post_init__(self) -> None:
        checks.function("cost", self.cost, "a function of an architecture")
        checks.number("limit", self.limit)

    def excess(self, architecture: Architecture) -> float:
        """By how much the architecture is above the limit; at most 0 where it is allowed."""
        return self.cost(architecture) - self.limit
