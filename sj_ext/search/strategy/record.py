"""What has been evaluated: once each, and on disk, so that a search that was stopped goes on."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import checks
from ...arguments import checked
from ..objective import Constraint, Evaluate
from ..space import Architecture, Space

__all__ = ["Evaluations", "Found", "allowed_sample"]

#: draws until a constraint counts as impossible
DRAWS = 2000


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        best: the architecture of the highest value.
        value: its value.
        history: every architecture and its value, in the order in which they were evaluated.
    """

    best: Architecture
    value: float
    history: tuple[tuple[Architecture, float], ...]


@checked
class Evaluations:
    """An objective that is asked once for each architecture.

    A strategy is a function of its seed and of what it evaluates. One that is started again with
    the seed and the record of a run that was stopped therefore goes the same way, at no cost up to
    where that run was, and on from there.

    Args:
        space: the architectures' space.
        evaluate: says how good an architecture is; higher is better.
        record: a JSON file that is read first and written after every evaluation; None for none.

    Raises:
        ValueError: the record is of another space.
        RuntimeError: another process has written the record meanwhile.
    """

    def __init__(self, space: Space, evaluate: Evaluate, record: str | Path | None = None):
        if not isinstance(space, Space):
            raise TypeError(f"space must be a Space, got {space!r}")
        self.space = space
        self._evaluate = checks.function("evaluate", evaluate, "a function of an architecture")
        self._path = None if record is None else Path(record)
        self._values: dict[Architecture, float] = {}
        self._asked: dict[Architecture, None] = {}  # in order
        self._written = self._read()

    def __call__(self, architecture: Architecture) -> float:
        """The value of an architecture of the space."""
        if architecture not in self._asked:
            self._note(architecture)
        return self._values[architecture]

    def __contains__(self, architecture: Architecture) -> bool:
        return architecture in self._asked

    @property
    def history(self) -> tuple[tuple[Architecture, float], ...]:
        """What was asked for in this run, each once, in order."""
        return tuple((architecture, self._values[architecture]) for architecture in self._asked)

    def found(self) -> Found:
        """The best of what was asked for.

        Raises:
            RuntimeError: nothing was.
        """
        if not self._asked:
            raise RuntimeError("nothing was evaluated")
        best = max(self._asked, key=self._values.__getitem__)
        return Found(best, self._values[best], self.history)

    def _note(self, architecture: Architecture) -> None:
        if architecture not in self._values:
            value = self._evaluate(self.space.valid(architecture))
            self._values[architecture] = checks.number("the value of evaluate", value)
            self._write()
        self._asked[architecture] = None

    def _read(self) -> str:
        if self._path is None or not self._path.exists():
            return ""
        text = self._path.read_text("utf-8")
        told = json.loads(text)
        if told["space"] != self.space.name:
            raise ValueError(
                f"record: {self._path} is of the space {told['space']!r}, not {self.space.name!r}"
            )
        for genes, value in told["values"]:
            self._values[Architecture(self.space.name, tuple(genes))] = value
        return text

    def _write(self) -> None:
        if self._path is None:
            return
        if (self._path.read_text("utf-8") if self._path.exists() else "") != self._written:
            raise RuntimeError(
                f"record: {self._path} was written by another process meanwhile; give each its own"
            )
        values = [[list(a.genes), value] for a, value in self._values.items()]
        self._written = json.dumps({"space": self.space.name, "values": values}, indent=0)
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(self._written, encoding="utf-8")
        os.replace(partial, self._path)


def allowed_sample(
    space: Space, rng: random.Random, constraints: Sequence[Constraint]
) -> Architecture:
    """An architecture at random that keeps to all constraints.

    Raises:
        ValueError: thousands of draws do not; the message names the constraint and the least cost.
    """
    least = {constraint: float("inf") for constraint in constraints}
    for _ in range(DRAWS if constraints else 1):
        architecture = space.sample(rng)
        over = {c: c.excess(architecture) for c in constraints}
        if all(excess <= 0 for excess in over.values()):
            return architecture
        least = {c: min(least[c], excess) for c, excess in over.items()}
    worst = max(least, key=lambda c: least[c])
    raise ValueError(
        f"constraints: of {DRAWS} architectures at random none has a {worst.name} of at most "
        f"{worst.limit:g}"
        + (
            f"; the least is {worst.limit + least[worst]:g}"
            if least[worst] > 0
            else " with the rest"
        )
    )


def allowed(architecture: Architecture, constraints: Iterable[Constraint]) -> bool:
    """Whether an architecture keeps to all constraints."""
    return all(constraint.excess(architecture) <= 0 for constraint in constraints)
