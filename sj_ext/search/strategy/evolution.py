"""Evolution as AutoSNN has it: the best of all so far, mutated and crossed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ... import checks
from ...arguments import checked
from ..objective import Constraint, Evaluate
from ..space import Architecture, Space
from .record import Evaluations, Found, allowed, allowed_sample

__all__ = ["crossed", "evolution_as_published", "fittest", "mutated"]


@checked
def evolution_as_published(
    space: Space,
    evaluate: Evaluate,
    *,
    seed: int,
    generations: int = 20,
    pool: int = 20,
    parents: int = 10,
    mutants: int = 10,
    children: int = 10,
    probability: float = 0.2,
    constraints: Sequence[Constraint] = (),
    record: str | Path | None = None,
) -> Found:
    """AutoSNN's evolution; by default 400 architectures are evaluated, none of them twice.

    Every generation evaluates its pool and keeps the best of that and of the best before. The next
    pool are mutants and children of those, filled up at random where too few new ones are found in
    three times as many tries.

    Args:
        space: what to search.
        evaluate: says how good an architecture is; higher is better.
        seed: of all draws.
        generations: how many pools are evaluated.
        pool: architectures in each.
        parents: how many of the best are kept.
        mutants: at most that many of the next pool are mutants, see :func:`mutated`.
        children: and that many are children, see :func:`crossed`.
        probability: with which a mutant's slot changes.
        constraints: what an architecture must keep to before it is evaluated.
        record: as :class:`Evaluations`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a number is out of range, or nothing keeps to the constraints.

    Source: Na et al., "AutoSNN", ICML 2022 (arXiv 2201.12738).
    """
    evaluations = Evaluations(space, evaluate, record)
    rng = random.Random(checks.integer("seed", seed))
    checks.integer("generations", generations, at_least=1)
    checks.integer("pool", pool, at_least=1)
    checks.integer("parents", parents, at_least=2)
    checks.number("probability", probability, above=0, at_most=1)
    best: list[Architecture] = []
    for _ in range(generations):
        draws: list[tuple[int, Callable[[], Architecture]]] = []
        if len(best) > 1:
            mutant = partial(_mutant, space, best, rng, probability)
            draws = [(mutants, mutant), (children, partial(_child, space, best, rng))]
        fresh = _next_pool(evaluations, draws, constraints, pool, rng)
        if not fresh:
            break
        best = fittest([*best, *fresh], evaluations, parents)
    return evaluations.found()


@checked
def fittest(pool: Sequence[Architecture], evaluate: Evaluate, count: int) -> list[Architecture]:
    """The ``count`` best, the best first; of equals the one that came first.

    Args:
        pool: architectures.
        evaluate: their value; higher is better.
        count: how many.

    Raises:
        ValueError: ``count`` is below 1.
    """
    checks.integer("count", count, at_least=1)
    return sorted(dict.fromkeys(pool), key=evaluate, reverse=True)[:count]


def mutated(
    space: Space, parent: Architecture, rng: random.Random, probability: float = 0.2
) -> Architecture:
    """``parent`` with some slots changed, each with that probability to another of its options.

    Args:
        space: of the parent.
        parent: an architecture.
        rng: a ``random.Random``.
        probability: of a slot's change.

    Raises:
        ValueError: the parent is not of the space.
    """
    genes = list(space.valid(parent).genes)
    for i in space.free:
        if rng.random() < probability:
            genes[i] = rng.choice([option for option in space.options(i) if option != genes[i]])
    return Architecture(space.name, space.repaired(genes))


def crossed(space: Space, a: Architecture, b: Architecture, rng: random.Random) -> Architecture:
    """The slots of ``a`` before a cut at random, and those of ``b`` behind it.

    Args:
        space: of both.
        a: an architecture.
        b: another one.
        rng: a ``random.Random``.

    Raises:
        ValueError: one of them is not of the space.
    """
    if len(space.slots) < 2:
        return space.valid(a)
    cut = rng.randrange(1, len(space.slots))
    genes = space.valid(a).genes[:cut] + space.valid(b).genes[cut:]
    return Architecture(space.name, space.repaired(genes))


def _mutant(
    space: Space, best: Sequence[Architecture], rng: random.Random, probability: float
) -> Architecture:
    return mutated(space, rng.choice(best), rng, probability)


def _child(space: Space, best: Sequence[Architecture], rng: random.Random) -> Architecture:
    a, b = rng.sample(best, 2)
    return crossed(space, a, b, rng)


def _next_pool(
    evaluations: Evaluations,
    draws: Sequence[tuple[int, Callable[[], Architecture]]],
    constraints: Sequence[Constraint],
    size: int,
    rng: random.Random,
) -> list[Architecture]:
    """New architectures: from each draw as many as it says, the rest at random."""
    space, found = evaluations.space, dict[Architecture, None]()

    def take(architecture: Architecture) -> bool:
        seen = architecture in evaluations or architecture in found
        if seen or not _legal(space, architecture) or not allowed(architecture, constraints):
            return False
        found[architecture] = None
        return True

    for count, draw in draws:
        taken = 0
        for _ in range(3 * count):
            taken += take(draw())
            if taken == count:
                break
    for _ in range(1000 * size):
        if len(found) >= size:
            break
        take(allowed_sample(space, rng, constraints))
    return list(found)[:size]


def _legal(space: Space, architecture: Architecture) -> bool:
    try:
        space.valid(architecture)
    except ValueError:
        return False
    return True
