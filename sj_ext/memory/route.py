"""A pass through a trunk that is put off until its last sum: values that stand for what comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .streams import Trunk

__all__ = ["Route"]


class Route:
    """Which values of a trunk a forward pass has asked for so far.

    As long as modules and sums follow each other as in the example run, nothing is computed. What
    looks at a value in between gets it from the modules as they are, and so does all that follows.

    Args:
        trunk: what is expected.
        x: the stream that goes in.
        module: from the name of a module and its input to its output.
        finish: from ``x``, alone in a list, to the output of the trunk as one function.
    """

    def __init__(
        self,
        trunk: Trunk,
        x: torch.Tensor,
        module: Callable[[str, torch.Tensor], torch.Tensor],
        finish: Callable[[list[torch.Tensor]], torch.Tensor],
    ):
        self.trunk, self.module, self.finish = trunk, module, finish
        self.known: dict[int, torch.Tensor] = {trunk.input: x}
        self.made_by: dict[int, str | tuple[int, int]] = {}
        self.is_open = True
        self.is_done = False

    def goes_on_with(self, unit: str, number: int) -> bool:
        """Whether ``unit`` is expected to read a value."""
        return self.is_open and self.trunk.parents.get(unit) == number

    def call(self, unit: str) -> int:
        """The value that ``unit`` makes."""
        number = self.trunk.values[unit]
        self.made_by[number] = unit
        return number

    def add(self, a: int, b: int) -> int | None:
        """The sum of two values, None where it is not expected."""
        number = self.trunk.sums.get(frozenset((a, b))) if self.is_open and a != b else None
        if number is not None:
            self.made_by[number] = (a, b)
        return number

    def number_of(self, value: Any) -> int | None:
        """The number of a tensor that is the input."""
        return self.trunk.input if value is self.known.get(self.trunk.input) else None

    def output(self) -> torch.Tensor:
        """The output of the trunk."""
        self.is_open, self.is_done = False, True
        return self.finish([self.known.pop(self.trunk.input)])

    def value(self, number: int) -> torch.Tensor:
        """A value in between, by the modules as they are."""
        self.is_open = False
        if number not in self.known:
            how = self.made_by[number]
            if isinstance(how, str):
                self.known[number] = self.module(how, self.value(self.trunk.parents[how]))
            else:
                self.known[number] = self.value(how[0]) + self.value(how[1])
        return self.known[number]
