"""Random numbers that can be drawn a second time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ...inference import leaving

__all__ = ["Draws", "RandomState", "Start"]

#: what the random numbers of a run start from: the generators' states, a seed, or None
Start = list[torch.Tensor] | int | None

R = TypeVar("R")

# All threads draw from the same generators. While one watches or moves them, no other cell may.
_GENERATORS = threading.RLock()


class RandomState:
    """The random number generators of the CPU and of one more device."""

    def __init__(self, device: torch.device):
        self._module = None
        if device.type != "cpu":
            module = torch.get_device_module(device)
            self._module = module if hasattr(module, "get_rng_state") else None
        self._device = device

    def get(self) -> list[torch.Tensor]:
        """The present states, as byte tensors on the CPU."""
        states = [torch.get_rng_state()]
        if self._module is not None:
            states.append(self._module.get_rng_state(self._device))
        return states

    def set(self, states: Sequence[torch.Tensor]) -> None:
        """Put states back that :meth:`get` returned."""
        torch.set_rng_state(states[0])
        if self._module is not None:
            self._module.set_rng_state(states[1], self._device)

    def seed(self, seed: int) -> None:
        """Start all generators from a seed."""
        torch.default_generator.manual_seed(seed)
        if self._module is not None:
            with self._module.device(self._device):
                self._module.manual_seed(seed)

    @contextlib.contextmanager
    def started_from(self, start: Sequence[torch.Tensor] | int) -> Iterator[None]:
        """The generators where a run of :class:`Draws` had them; afterwards where they are now."""
        with _GENERATORS:
            now = self.get()
            try:
                if isinstance(start, int):
                    self.seed(start)
                else:
                    self.set(start)
                yield
            finally:
                self.set(now)


class Draws:
    """Runs levels such that the random numbers of each run can be drawn again.

    The state of a generator is kilobytes, which would be held for every level and step. Only the
    first run in which a level draws numbers is told by the state before it. From then on in the
    call, every run of that level starts from a seed of its own, which comes from the CPU's
    generator, and the generators go on afterwards as if the level had not drawn. Levels that draw
    nothing change nothing.

    Args:
        device: where the levels run.
        alone: whether cells in other threads wait while a level runs, as they must where it will be
            run again. What draws elsewhere in another thread at that time counts as the level's.
    """

    def __init__(self, device: torch.device, alone: bool):
        self._random = RandomState(device)
        self._alone = alone
        self._drawing: set[int] = set()

    def run(self, level: int, function: Callable[[], R]) -> tuple[R, Start]:
        """The function's result, and what the generators started from: states, a seed, or None."""
        if leaving():  # a graph draws its own numbers
            return function(), None
        with _GENERATORS if self._alone else contextlib.nullcontext():
            if level in self._drawing:
                seed = int(torch.randint(2**62, ()))
                with self._random.started_from(seed):
                    return function(), seed
            before, result, after = self._random.get(), function(), self._random.get()
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            return result, None
        self._drawing.add(level)
        return result, before
