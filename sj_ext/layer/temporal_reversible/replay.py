"""Running a level a second time exactly as it ran the first time, and leaving no trace of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import is_autocast_available

from ... import host

__all__ = ["AutocastState", "Draws", "RandomState", "Shadows", "Start", "foreign_leaves"]


#: what the random numbers of a run start from: the generators' states, a seed, or None
Start = list[torch.Tensor] | int | None

# All threads draw from the same generators. While one watches or moves them, no other cell may.
_GENERATORS = threading.RLock()


class AutocastState:
    """Autocast as it was when this object was made, for one device type and for the CPU."""

    def __init__(self, device_type: str):
        self._settings: list[dict[str, Any]] = [
            {
                "device_type": kind,
                "enabled": torch.is_autocast_enabled(kind),
                "dtype": torch.get_autocast_dtype(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for kind in dict.fromkeys((device_type, "cpu"))
            if is_autocast_available(kind)
        ]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Autocast as it was."""
        with contextlib.ExitStack() as stack:
            for settings in self._settings:
                stack.enter_context(torch.autocast(**settings))
            yield


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

    def run(self, level: int, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Start]:
        """The function's result, and what the generators started from: states, a seed, or None."""
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


class Shadows:
    """Stand-ins for the parameters and buffers of modules while levels are run again.

    A level that is run again reads leaves that share the parameters' memory and are nobody else's:
    the gradient of one step can be asked for without calling hooks that users and DDP put on the
    parameters, which see the sum over all steps once. Its buffers are copies that are thrown away,
    so that running statistics move once per forward pass. Memories of host modules go back to what
    they were after every run, which also lets go of the graph that they may hold.

    Args:
        modules: the level modules; one may stand there many times.
        parameters: their parameters, each once.
        values: what the parameters were when the levels ran. Where saved tensors are kept
            elsewhere meanwhile (offloaded, say) these are other tensors.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        parameters: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
    ):
        self._modules = list(dict.fromkeys(modules))
        self._parameters, self._values = list(parameters), list(values)
        self._of: dict[int, nn.Parameter] = {}
        self._used: dict[nn.Module, list[int]] = {}
        self._holders: dict[nn.Module, list[host.base.MemoryModule]] = {}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[Shadows]:
        """Put the stand-ins into the modules, and the originals back at the end."""
        place = {id(p): i for i, p in enumerate(self._parameters)}
        self.leaves = [
            nn.Parameter(value.detach(), p.requires_grad)
            for p, value in zip(self._parameters, self._values, strict=True)
        ]
        put_back = []
        buffers: dict[int, torch.Tensor] = {}
        seen: set[nn.Module] = set()
        try:
            for level in self._modules:
                used = self._used[level] = []
                holders = self._holders[level] = []
                for module in level.modules():
                    if isinstance(module, host.base.MemoryModule):
                        holders.append(module)
                    names = [(name, p) for name, p in module._parameters.items() if p is not None]
                    for _, p in names:
                        index = place.get(id(p))
                        if index is None:  # a stand-in already: the module is part of two levels
                            index = next(i for i, leaf in enumerate(self.leaves) if leaf is p)
                        used.append(index)
                    if module in seen:
                        continue
                    seen.add(module)
                    put_back.append((module, dict(module._parameters), dict(module._buffers)))
                    for name, p in names:
                        setattr(module, name, self.leaves[place[id(p)]])
                    for name, buffer in module._buffers.items():
                        if buffer is not None:
                            if id(buffer) not in buffers:
                                buffers[id(buffer)] = buffer.clone()
                            module._buffers[name] = buffers[id(buffer)]
            yield self
        finally:
            for module, parameters, module_buffers in put_back:
                for name, parameter in parameters.items():
                    setattr(module, name, parameter)
                module._buffers.update(module_buffers)

    def of(self, level: nn.Module) -> list[int]:
        """Places, among all parameters, of those of a level that need a gradient."""
        unique = dict.fromkeys(self._used[level])
        return [index for index in unique if self.leaves[index].requires_grad]

    @contextlib.contextmanager
    def memories_kept(self, level: nn.Module) -> Iterator[None]:
        """Leave the memories of host modules in a level as they are."""
        kept = [(holder, dict(holder._memories)) for holder in self._holders[level]]
        try:
            yield
        finally:
            for holder, memories in kept:
                holder._memories.update(memories)


def foreign_leaves(output: torch.Tensor, known: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves that a graph would send a gradient to and that are not among ``known``."""
    allowed = {id(x) for x in known}
    stack, seen, foreign = [output.grad_fn], set(), []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor) and id(variable) not in allowed:
            foreign.append(variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return foreign
