"""Search at random, what every other strategy has to beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from ... import checks
from ...arguments import checked
from ..objective import Constraint, Evaluate
from ..space import Space
from .record import Evaluations, Found, allowed_sample

__all__ = ["random_search"]


@checked
def random_search(
    space: Space,
    evaluate: Evaluate,
    *,
    trials: int,
    seed: int,
    constraints: Sequence[Constraint] = (),
    record: str | Path | None = None,
) -> Found:
    """The best of architectures that are drawn at random, each at most once.

    Args:
        space: what to draw from.
        evaluate: says how good an architecture is; higher is better.
        trials: how many different architectures are evaluated, if there are that many.
        seed: of the draws.
        constraints: what an architecture must keep to before it is evaluated.
        record: as :class:`Evaluations`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``trials`` is below 1, or nothing keeps to the constraints.
    """
    evaluations = Evaluations(space, evaluate, record)
    trials = checks.integer("trials", trials, at_least=1)
    rng = random.Random(checks.integer("seed", seed))
    misses = 0
    while len(evaluations.history) < trials and misses < 100 * trials:
        architecture = allowed_sample(space, rng, constraints)
        if architecture in evaluations:
            misses += 1
        else:
            evaluations(architecture)
    return evaluations.found()
