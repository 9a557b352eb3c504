"""The indices of parameters' axes, as atoms, and which of them have to be cut together."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["Atoms", "Graph", "Product"]


class Atoms:
    """Numbers for the indices of axes, and which of them belong together (union-find).

    Atom 0 is nobody's.
    """

    def __init__(self) -> None:
        self.parent: list[int] = [0]
        #: of each atom: id of the parameter, axis, index; None where it stands for a sum
        self.place: list[tuple[int, int, int] | None] = [None]
        self.pinned: set[int] = set()

    def new(self, count: int, parameter: int | None = None, axis: int = 0) -> torch.Tensor:
        """``count`` fresh atoms."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        for i in range(count):
            self.place.append(None if parameter is None else (parameter, axis, i))
        return torch.arange(start, start + count, dtype=torch.int32)

    def find(self, atom: int) -> int:
        """The representative of an atom."""
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def join(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Atoms that stand at the same place belong together; 0 joins nothing."""
        pairs = torch.stack(torch.broadcast_tensors(one, other)).flatten(1)
        pairs = pairs[:, (pairs > 0).all(0) & (pairs[0] != pairs[1])]
        for a, b in set(zip(*pairs.tolist(), strict=True)):
            a, b = self.find(a), self.find(b)
            if a != b:
                self.parent[max(a, b)] = min(a, b)

    def pin(self, atoms: torch.Tensor) -> None:
        """These cannot be taken out."""
        self.pinned |= set(atoms.unique().tolist())

    def families(self) -> dict[int, list[int]]:
        """Atoms by representative, where none is pinned."""
        found: dict[int, list[int]] = defaultdict(list)
        for atom in range(1, len(self.parent)):
            found[self.find(atom)].append(atom)
        held = {self.find(atom) for atom in self.pinned}
        return {root: atoms for root, atoms in found.items() if root not in held}


class Product(NamedTuple):
    """A product of two activations."""

    #: the module that multiplies
    name: str
    #: multiply-accumulates
    size: int
    #: atoms along its axes: what is summed over, the batch, rows and columns, where there are any
    axes: list[torch.Tensor]


class Graph:
    """What a trace has found.

    Attributes:
        atoms: who belongs together.
        rows: per parameter (by id) the atoms of each of its axes.
        follows: per parameter of a normalisation the atoms of what it normalises.
        heads: modules that split channels into heads, each with the name of its number of heads,
            and the atoms of the heads.
        products: of two activations, in order.
    """

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.rows: dict[int, dict[int, torch.Tensor]] = {}
        self.follows: dict[int, torch.Tensor] = {}
        self.heads: dict[tuple[nn.Module, str], torch.Tensor] = {}
        self.products: list[Product] = []
