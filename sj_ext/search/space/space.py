"""What may be built: slots, each with its options, and architectures that fill them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ... import checks
from ...arguments import checked

__all__ = ["Architecture", "Choice", "Draw", "Gene", "Repair", "Space", "Wrong"]

#: what stands in a slot: a name or a number; None where the slot does not exist
Gene = str | int | float | None

#: draws the genes of an architecture in place of a uniform draw
Draw = Callable[[random.Random], Sequence[Gene]]

#: brings the genes of an architecture into the form that stands for all that build the same network
Repair = Callable[[tuple[Gene, ...]], Sequence[Gene]]

#: says what is wrong with genes that are each an option, or None
Wrong = Callable[[tuple[Gene, ...]], str | None]


@checked
@dataclass(frozen=True)
class Choice:
    """The options of a slot; one option is a slot that is not searched.

    Args:
        options: names or numbers, each once.

    Raises:
        ValueError: there are no options, or one stands there twice.
    """

    options: tuple[Gene, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options or len(set(self.options)) < len(self.options):
            raise ValueError(f"options must be at least one, each once, got {self.options!r}")

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.options) == 1


@dataclass(frozen=True)
class Architecture:
    """A network of a space, by what stands in each slot; hashable.

    Args:
        space: the space's name.
        genes: one option per slot, in the space's order.
    """

    space: str
    genes: tuple[Gene, ...]

    def __iter__(self) -> Iterator[Gene]:
        return iter(self.genes)

    def __len__(self) -> int:
        return len(self.genes)

    def to_json(self) -> str:
        """One line of JSON, from which :meth:`Space.from_json` makes the same architecture."""
        return json.dumps({"space": self.space, "genes": list(self.genes)})


@checked
class Space:
    """A set of architectures: slots with options, and what holds between them.

    Args:
        name: told in every architecture, so that none is taken for one of another space.
        slots: the options of every slot, in order.
        draw: draws genes from a ``random.Random``; by default each slot's uniformly.
        repair: of several genes that build the same network, the ones that stand for it.
        wrong: says what else an architecture must not be, or returns None.

    Raises:
        TypeError: a slot is no :class:`Choice`.
        ValueError: there are no slots.
    """

    def __init__(
        self,
        name: str,
        slots: Mapping[str, Choice],
        *,
        draw: Draw | None = None,
        repair: Repair | None = None,
        wrong: Wrong | None = None,
    ):
        if not isinstance(slots, Mapping):
            raise TypeError(f"slots must be a mapping of names to choices, got {slots!r}")
        for slot, choice in slots.items():
            if not isinstance(choice, Choice):
                raise TypeError(f"slots[{slot!r}] must be a Choice, got {choice!r}")
        if not slots:
            raise ValueError("slots must hold at least one slot, got none")
        self.name, self.slots = name, dict(slots)
        self._draw, self._repair, self._wrong = draw, repair, wrong

    def __repr__(self) -> str:
        lines = [f"{self.name}, {self.size:,} ways to fill {len(self.slots)} slots"]
        return "\n".join(
            lines
            + [f"  {slot}: {', '.join(map(str, c.options))}" for slot, c in self.slots.items()]
        )

    @property
    def size(self) -> int:
        """In how many ways the slots can be filled."""
        return math.prod(len(choice.options) for choice in self.slots.values())

    @property
    def free(self) -> list[int]:
        """Places of the slots in which there is something to choose."""
        return [i for i, choice in enumerate(self.slots.values()) if not choice.fixed]

    def options(self, place: int) -> tuple[Gene, ...]:
        """The options of the slot at a place."""
        return list(self.slots.values())[place].options

    def architecture(self, *genes: Gene, **named: Gene) -> Architecture:
        """The architecture with these genes, repaired.

        Args:
            *genes: of every slot in order, or of those with something to choose.
            **named: in place of them, by the slots' names.

        Raises:
            ValueError: the genes are not of this space.
        """
        return self.valid(Architecture(self.name, self.repaired(self._filled(genes, named))))

    def repaired(self, genes: Sequence[Gene]) -> tuple[Gene, ...]:
        """Genes in the form that stands for their network."""
        genes = tuple(genes)
        return genes if self._repair is None else tuple(self._repair(genes))

    def valid(self, architecture: Architecture) -> Architecture:
        """``architecture``, if it is one of this space.

        Raises:
            TypeError: it is no :class:`Architecture`.
            ValueError: it is of another space or outside of this one; the message names the slot.
        """
        if not isinstance(architecture, Architecture):
            raise TypeError(f"architecture must be an Architecture, got {architecture!r}")
        if architecture.space != self.name:
            raise ValueError(
                f"architecture must be of the space {self.name!r}, got one of "
                f"{architecture.space!r}"
            )
        problem = self._problem(architecture.genes)
        if problem:
            raise ValueError(f"architecture: {problem}")
        return architecture

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture at random.

        Args:
            rng: a ``random.Random``; the same state draws the same architecture.

        Raises:
            TypeError: ``rng`` is something else.
            RuntimeError: a thousand draws in a row were outside of the space.
        """
        check_rng(rng)
        for _ in range(1000):
            genes = self.repaired(self._drawn(rng))
            if self._problem(genes) is None:
                return Architecture(self.name, genes)
        raise RuntimeError(f"the space {self.name!r} draws nothing that it allows")

    def from_json(self, text: str) -> Architecture:
        """The architecture that :meth:`Architecture.to_json` wrote.

        Raises:
            ValueError: the text is no architecture of this space.
        """
        try:
            told = json.loads(text)
            found = Architecture(told["space"], tuple(told["genes"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"text must be an architecture in JSON, got {text[:80]!r}") from error
        return self.valid(found)

    def index(self, architecture: Architecture) -> int:
        """Its number: the first free slot counts least.

        Raises:
            ValueError: it is not of this space.
        """
        genes, number, weight = self.valid(architecture).genes, 0, 1
        for i in self.free:
            options = self.options(i)
            number += weight * options.index(genes[i])
            weight *= len(options)
        return number

    def from_index(self, number: int) -> Architecture:
        """The architecture with that number.

        Raises:
            ValueError: ``number`` is out of range, or the architecture is not allowed.
        """
        rest = checks.integer("number", number, at_least=0, at_most=self.size - 1)
        genes = [choice.options[0] for choice in self.slots.values()]
        for i in self.free:
            options = self.options(i)
            genes[i] = options[rest % len(options)]
            rest //= len(options)
        return self.architecture(*genes)

    def _drawn(self, rng: random.Random) -> Sequence[Gene]:
        if self._draw is not None:
            return self._draw(rng)
        return [rng.choice(choice.options) for choice in self.slots.values()]

    def _filled(self, genes: Sequence[Gene], named: Mapping[str, Gene]) -> tuple[Gene, ...]:
        if named:
            unknown = sorted(named.keys() - self.slots.keys())
            if unknown or genes:
                raise ValueError(
                    f"named genes must be of {', '.join(self.slots)}, got {', '.join(unknown)}"
                    if unknown
                    else "genes are given in order or by name, not both"
                )
            return tuple(named.get(slot, c.options[0]) for slot, c in self.slots.items())
        if len(genes) == len(self.free) < len(self.slots):
            filled = [choice.options[0] for choice in self.slots.values()]
            for i, gene in zip(self.free, genes, strict=True):
                filled[i] = gene
            return tuple(filled)
        return tuple(genes)

    def _problem(self, genes: tuple[Gene, ...]) -> str | None:
        if len(genes) != len(self.slots):
            return f"genes must be one per slot, {len(self.slots)}, got {len(genes)}"
        for (slot, choice), gene in zip(self.slots.items(), genes, strict=True):
            if gene not in choice.options:
                return f"{slot} must be one of {choice.options}, got {gene!r}"
        return None if self._wrong is None else self._wrong(genes)


def check_rng(rng: Any) -> random.Random:
    """``rng``, if it is a ``random.Random``: nothing here draws without a seed."""
    if not isinstance(rng, random.Random):
        raise TypeError(f"rng must be a random.Random, for example random.Random(0), got {rng!r}")
    return rng
