"""A segment: modules that run one after the other, and how they are run forwards and again.

A segment has at most one batch norm over the batch, so that the statistics of one pass over the
slices are enough; and what comes after a neuron that is not its first module has no weights, so
that each weight's input is on record as bits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..recomputation import replaying
from .kinds import Step
from .neurons import (
    Looker,
    Recorded,
    Spent,
    memories_of,
    needs_input,
    recorded_window,
    with_surrogate,
)
from .planes import Held, hold, shape_of
from .products import Recalled
from .statistics import BatchStatistics

__all__ = ["Records", "Segment", "is_worth_it", "may_follow"]


def is_worth_it(steps: Sequence[Step]) -> bool:
    """Whether a segment of these steps holds less than its modules do as they are."""
    linear = any(step.linear for step in steps)
    return any(
        step.kind == "neuron"
        or (step.kind == "norm" and linear)
        or isinstance(step.module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d)
        for step in steps
    )


def may_follow(steps: Sequence[Step], more: Sequence[Step]) -> bool:
    """Whether ``more`` can be in one segment with ``steps``, after them."""
    both = [*steps, *more]
    norms = sum(step.kind == "norm" for step in both)
    fired = next((i for i, step in enumerate(both) if i and step.kind == "neuron"), len(both))
    quiet = all(step.kind == "map" and not step.linear for step in both[fired + 1 :])
    return norms <= 1 and quiet


@dataclass
class Records:
    """What one forward pass leaves, by slice; spikes, windows and outputs also by step."""

    inputs: list[Held | None]
    #: the memories of each neuron before its first step, by its place
    memories: dict[int, dict[str, Any]]
    #: whether the outputs of convolutions and linear layers are put on record
    keeps: bool = False
    outputs: dict[tuple[int, int], Held] = field(default_factory=dict)
    spikes: dict[tuple[int, int], Held] = field(default_factory=dict)
    windows: dict[tuple[int, int], list[Any]] = field(default_factory=dict)
    statistics: BatchStatistics | None = None

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, each of which a backward pass must find unchanged."""
        found: list[torch.Tensor] = []
        for held in (*self.inputs, *self.outputs.values(), *self.spikes.values()):
            found += held.tensors if held is not None else ()
        for windows in self.windows.values():
            found += windows
        if self.statistics is not None:
            found += (self.statistics.mean, self.statistics.var)
        return found

    def without_tensors(self) -> Records:
        """The same without the tensors, which autograd keeps and frees."""
        return self.with_tensors(itertools.repeat(None))

    def with_tensors(self, tensors: Iterable[Any]) -> Records:
        """The same with tensors in the order of :meth:`tensors`."""
        rest = iter(tensors)

        def filled(held: Held) -> Held:
            return dataclasses.replace(held, tensors=tuple(next(rest) for _ in held.tensors))

        inputs = [None if held is None else filled(held) for held in self.inputs]
        outputs = {key: filled(held) for key, held in self.outputs.items()}
        spikes = {key: filled(held) for key, held in self.spikes.items()}
        windows = {key: [next(rest) for _ in own] for key, own in self.windows.items()}
        statistics = self.statistics
        if statistics is not None:
            statistics = BatchStatistics(next(rest), next(rest), statistics.count)
        return Records(inputs, self.memories, self.keeps, outputs, spikes, windows, statistics)

    def latest(self, part: int, stop: int) -> tuple[torch.Tensor, int] | None:
        """The last value before step ``stop`` that is on record, and the step that reads it."""
        for place in reversed(range(stop)):
            held = self.outputs.get((place, part)) or self.spikes.get((place, part))
            if held is not None:
                return held.get(), place + 1
        return None


@dataclass
class Segment:
    """Modules in the order in which they run."""

    steps: list[Step]

    @property
    def name(self) -> str:
        """The names of the first and the last module."""
        names = [step.name for step in self.steps]
        return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"

    @property
    def modules(self) -> list[nn.Module]:
        """The modules, each once."""
        return list(dict.fromkeys(step.module for step in self.steps))

    @property
    def norm_place(self) -> int | None:
        """Where the batch norm over the batch stands."""
        places = (i for i, step in enumerate(self.steps) if step.over_batch)
        return next(places, None)

    @property
    def batch_axis(self) -> int:
        """1 where the modules get sequences ``[T, N, *]``, else 0."""
        return int(any(step.sequences for step in self.steps))

    @property
    def leads_with_bits(self) -> bool:
        """Whether spikes and windows of the first module are all it takes to undo it."""
        first = self.steps[0]
        return first.kind == "neuron" and not needs_input(first.module)

    @property
    def reads_every(self) -> tuple[int, ...]:
        """Of its input's last axes, every how many-th element the first module reads; () for all.

        A strided 1 x 1 convolution, as shortcuts have it, reads one pixel of many.
        """
        first: Any = self.steps[0].module
        if not isinstance(first, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return ()
        unpadded = isinstance(first.padding, tuple) and not any(first.padding)
        single = all(size == 1 for size in first.kernel_size)
        return first.stride if single and unpadded and max(first.stride) > 1 else ()

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of all modules, each once."""
        return list(dict.fromkeys(p for module in self.modules for p in module.parameters()))

    def starts_anew(self) -> bool:
        """Whether all neurons have just been reset."""
        return not any(isinstance(value, torch.Tensor) for value in self._in_memories())

    def check_reset(self) -> None:
        """Raise if a neuron was not reset since its last compact forward pass."""
        if any(isinstance(value, Spent) for value in self._in_memories()):
            raise RuntimeError(
                f"{self.name}: a neuron was not reset since the last forward pass, and "
                "sj_ext.memory.compact does not keep potentials after one: call "
                "functional.reset_net(model) before each forward pass, or run the network that "
                "compact was given, which carries potentials over"
            )

    def memories(self) -> dict[int, dict[str, Any]]:
        """What is in the memories of each neuron, by its place."""
        return {
            place: memories_of(step.module)
            for place, step in enumerate(self.steps)
            if step.kind == "neuron"
        }

    def _in_memories(self) -> list[Any]:
        return [value for memories in self.memories().values() for value in memories.values()]

    def run(
        self, x: torch.Tensor, part: int, records: Records, shown: bool = False
    ) -> torch.Tensor:
        """All steps of one slice, put on record; the output itself only if it is ``shown`` again.

        To go back through weights that stand last, the shape of what they gave is enough.
        """
        y = self.forwards(x, 0, len(self.steps), part, records)
        last = len(self.steps) - 1, part
        if last in records.outputs and not shown:
            records.outputs[last] = shape_of(y)
        return y

    def forwards(
        self, x: torch.Tensor, start: int, stop: int, part: int, records: Records
    ) -> torch.Tensor:
        """Steps ``start`` to ``stop`` of one slice, put on record, or from there if they are."""
        for place in range(start, stop):
            step = self.steps[place]
            if step.kind == "neuron":
                x = self._fire(place, x, part, records)
            elif step.over_batch and records.statistics is not None:
                x = normalise(step, records.statistics, x)
            elif step.linear and records.keeps:
                x = self._weigh(place, x, part, records)
            else:
                x = step(x)
        return x

    def _weigh(self, place: int, x: torch.Tensor, part: int, records: Records) -> torch.Tensor:
        key = (place, part)
        if key in records.outputs:
            return records.outputs[key].get()
        y = self.steps[place](x)
        records.outputs[key] = hold(y)
        return y

    def _fire(self, place: int, x: torch.Tensor, part: int, records: Records) -> torch.Tensor:
        key = (place, part)
        if key in records.spikes:
            return records.spikes[key].get()
        node: Any = self.steps[place].module
        before = memories_of(node)
        window = recorded_window(node)
        try:
            if window is None:
                spikes = self.steps[place](x)
            else:
                looker = Looker(node.surrogate_function, window)
                with with_surrogate(node, looker):
                    spikes = self.steps[place](x)
                records.windows[key] = looker.windows
        finally:
            vars(node).get("_memories", {}).update(before)
        records.spikes[key] = hold(spikes)
        return spikes

    def spend(self) -> None:
        """Mark the potentials of all neurons as not kept."""
        for step in self.steps:
            if step.kind == "neuron":
                memories = vars(step.module).get("_memories", {})
                memories.update(dict.fromkeys(memories, Spent()))

    @replaying()  # from the state that is on record
    def again(
        self, x: torch.Tensor, start: int, stop: int, part: int, records: Records
    ) -> torch.Tensor:
        """Steps ``start`` to ``stop`` of one slice a second time, firing what is on record."""
        for place in range(start, stop):
            step = self.steps[place]
            if step.kind == "neuron":
                x = self._fire_again(place, x, part, records)
            elif step.over_batch and records.statistics is not None:
                x = normalise(step, records.statistics, x)
            elif (place, part) in records.outputs:
                x = self._weigh_again(place, x, part, records)
            else:
                x = step(x)
        return x

    def _weigh_again(
        self, place: int, x: torch.Tensor, part: int, records: Records
    ) -> torch.Tensor:
        step, output = self.steps[place], records.outputs[place, part].get()
        if not torch.is_grad_enabled():
            return output
        with Recalled(step.module, output):
            return step(x)

    def _fire_again(self, place: int, x: torch.Tensor, part: int, records: Records) -> torch.Tensor:
        key = (place, part)
        node: Any = self.steps[place].module
        spikes = records.spikes[key].get()
        if not torch.is_grad_enabled():
            return spikes
        own = node.surrogate_function
        recorded = Recorded(spikes, own, records.windows.get(key), recorded_window(node))
        before = memories_of(node)
        memories = vars(node).get("_memories", {})
        memories.update(records.memories[place])
        try:
            with with_surrogate(node, recorded):
                return self.steps[place](x)
        finally:
            memories.update(before)


def normalise(step: Step, statistics: BatchStatistics, x: torch.Tensor) -> torch.Tensor:
    """A batch norm step with statistics that are known."""
    norm: Any = step.module
    return step.unfold(statistics.normalise(norm, step.fold(x)), x)
