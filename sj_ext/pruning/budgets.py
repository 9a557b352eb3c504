"""Budgets: shares of the dense network, or absolute amounts per sample."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .resources import Resource
from .resources import resource as resource_by_name

__all__ = ["Budget", "Limit", "limits"]

Limit = float | int | str
Budget = Limit | Sequence[Limit] | Mapping[str | Resource, Limit]
Resources = str | Resource | Sequence[str | Resource]

PREFIXES = {"f": -15, "p": -12, "n": -9, "u": -6, "µ": -6, "m": -3, "": 0, "k": 3, "K": 3, "M": 6}
PREFIXES |= {"G": 9, "T": 12}


@dataclass
class Target:
    """What a resource may be.

    Attributes:
        resource: what is limited.
        given: as the user wrote it.
        amount: in the resource's unit, per sample; None where the budget is a share.
        share: of the dense network; of an amount, as the dense network is now.
    """

    resource: Resource
    given: Limit
    amount: float | None
    share: float

    def measure(self) -> None:
        """Tell the share of an amount, of which the dense network may cost more or less now.

        Raises:
            ValueError: costs per sample are not known.
        """
        if self.amount is not None:
            self.share = min(1.0, self.amount / self.resource.amount())


def limits(budget: Any, resource: Any, arguments: Mapping[str, Any]) -> list[Target]:
    """One target per resource; ``arguments`` are what those that are given by name may take.

    Raises:
        TypeError, ValueError: as :class:`~sj_ext.pruning.Pruner`.
    """
    if isinstance(budget, Mapping):
        resource, budget = list(budget), list(budget.values())
    resources = _several("resource", resource, (str, Resource))
    budgets = _several("budget", budget, (int, float, str))
    if len(resources) != len(budgets) or not budgets:
        raise ValueError(
            f"budget must have one number per resource, got {len(budgets)} for {len(resources)}"
        )
    made = [resource_by_name(which, **arguments) for which in resources]
    names = [res.name for res in made]
    if len(set(names)) != len(names):
        raise ValueError(f"resources must have different names, got {names}")
    return [_target(res, value) for res, value in zip(made, budgets, strict=True)]


def _several(name: str, given: Any, one: tuple[type, ...]) -> list[Any]:
    """What was given alone or in a sequence."""
    if isinstance(given, one):
        return [given]
    if not isinstance(given, Iterable):
        what = "a name or a Resource" if name == "resource" else "a number in (0, 1] or an amount"
        raise TypeError(f"{name} must be {what}, or several, got {given!r}")
    return list(given)


def _target(res: Resource, value: Any) -> Target:
    unit = f"such as '50 n{res.unit}'" if res.unit else "such as 1_000_000"
    allowed = f"budget must be in (0, 1], or an amount of {res.name!r} {unit}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"budget must be a number in (0, 1] or an amount, got {value!r}")
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([\d_.]+(?:[eE][+-]?\d+)?)\s*([a-zA-Zµ]*)\s*", value)
        prefix = match[2].removesuffix(res.unit) if match else "?"
        if match is None or prefix not in PREFIXES or (res.unit in ("J", "s") and not match[2]):
            if match is None:
                raise TypeError(f"budget must be a number in (0, 1] or an amount, got {value!r}")
            raise ValueError(allowed)
        amount = float(match[1]) * 10.0 ** PREFIXES[prefix]
        if not (math.isfinite(amount) and amount > 0):
            raise ValueError(allowed)
        return Target(res, value, amount, math.nan)
    if isinstance(value, int) and value > 1:
        if res.unit in ("J", "s"):
            raise ValueError(allowed)
        return Target(res, value, float(value), math.nan)
    if not 0 < value <= 1:
        raise ValueError(allowed)
    return Target(res, value, None, float(value))
