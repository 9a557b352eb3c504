"""Finding segments: which module's output goes to which module, and nowhere else.

The network runs once on an example. Modules that can be in a segment leave a mark on what they
return; a mark on an input tells who made it, and whatever else touches a marked tensor is noted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..layer.temporal_reversible.randomness import RandomState
from ..observe import at_rest
from .kinds import Step, steps_of, why_not
from .neurons import fires_by_surrogate
from .planes import planes_needed
from .products import Products
from .segment import Segment, is_worth_it, may_follow
from .streams import Graph, Trunk, find_trunks, is_sum

__all__ = ["Found", "find_segments", "forwards_of", "left_as_it_was", "segment_of"]

_MARK = "_sj_ext_made_by"


@dataclass
class _Call:
    """One call of a unit in the example run."""

    unit: str
    shape: torch.Size
    planes: int | None
    itemsize: int
    outputs: list[torch.Size]
    made_by: int | None
    #: bytes of what its convolutions and linear layers give
    products: int
    consumers: list[int] = field(default_factory=list)
    touched: bool = False


@dataclass
class Found:
    """What the example run found.

    Attributes:
        segments: lists of names of modules, in the order in which they run.
        left_out: why a module that could be in a segment is in none, by its name.
        calls: shapes that the modules met, by name.
        trunks: blocks of segments around a stream.
    """

    segments: list[list[str]]
    left_out: dict[str, str]
    calls: dict[str, _Call]
    trunks: list[Trunk]

    @property
    def samples(self) -> int:
        """How many samples the example has."""
        shapes = [call.shape for call in self.calls.values()]
        return max((shape[1] if len(shape) > 2 else shape[0] for shape in shapes), default=1)


def find_segments(model: nn.Module, example: Sequence[Any], exclude: Collection[str] = ()) -> Found:
    """Run ``model`` on ``example`` once, leave it as it was, and say what its segments are."""
    units = _units(model, exclude)
    run = _Run(units)
    with (
        left_as_it_was(model),
        torch.enable_grad(),  # a network may take another path where no gradient is asked for
        forwards_of(model, units, run.call),
        _Touches(run),
    ):
        try:
            model(*example)
        except Exception as error:
            raise RuntimeError(
                f"example_input: the network did not run on it ({type(error).__name__}: {error}). "
                f"The last module that was called is {run.last!r}. Give an example that it runs "
                "on, or name the segments with segments=[...]"
            ) from error
    return run.found()


def _units(model: nn.Module, exclude: Collection[str]) -> dict[str, list[Step]]:
    """Modules and containers that can be in a segment, each with its steps."""
    units: dict[str, list[Step]] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not name:
            continue
        if any(name == own or name.startswith(own + ".") for own in exclude):
            continue
        steps = steps_of(name, module)
        if steps is not None:
            units[name] = steps
            inside.update(module.modules())
    return units


class _Run:
    """The example run."""

    def __init__(self, units: dict[str, list[Step]]):
        self.units = units
        self.calls: list[_Call] = []
        self.inside = False
        self.last = ""
        self.refused: dict[str, str] = {}
        self.graph = Graph()

    def call(self, unit: str, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A unit's own forward, whose input and output are noted."""
        if self.inside:
            return forward(*args, **kwargs)
        self.inside, self.last = True, unit
        try:
            return self._call(unit, forward, args, kwargs)
        finally:
            self.inside = False

    def _call(self, unit: str, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs or not _is_activation(args[0]):
            self.graph.touch((args, kwargs))
            self.refused[unit] = "is not called with one floating-point tensor"
            return forward(*args, **kwargs)
        x = args[0]
        self._look(unit, x)
        version = x._version
        with Products() as products:
            out = forward(x)
        if x._version != version:
            self.refused[unit] = "changes its input in place"
        if not _is_activation(out):
            self.refused[unit] = "does not return one floating-point tensor"
            self.graph.touch(x)
            return out
        made_by = getattr(x, _MARK, None)
        number = len(self.calls)
        planes, size = planes_needed(x), x.element_size()
        call = _Call(unit, x.shape, planes, size, [out.shape], made_by, products.bytes)
        self.calls.append(call)
        if made_by is not None:
            self.calls[made_by].consumers.append(number)
        out = out.view_as(out) if out is x else out
        setattr(out, _MARK, number)
        self.graph.module(unit, x, out)
        return out

    def _look(self, unit: str, x: torch.Tensor) -> None:
        for step in self.units[unit]:
            reason = why_not(step)
            if reason is None and step.kind == "neuron" and not fires_by_surrogate(step.module, x):
                reason = f"{step.name} does not fire by its surrogate alone"
            if reason is not None:
                self.refused[unit] = reason

    def touch(self, values: Any) -> None:
        """Note that something other than a unit looked at these."""
        for value in tree_leaves(values):
            number = getattr(value, _MARK, None) if isinstance(value, torch.Tensor) else None
            if number is not None:
                self.calls[number].touched = True

    def found(self) -> Found:
        """Chains of calls each of which alone consumes what the one before it made."""
        goes_on = self._goes_on()
        segments: dict[tuple[str, ...], None] = {}
        begun: set[str] = set()
        for call in self.calls:
            if call.unit in begun or call.unit in self.refused:
                continue
            chain = [call.unit]
            while chain[-1] in goes_on:
                chain.append(goes_on[chain[-1]])
            begun.update(chain)
            if is_worth_it([step for unit in chain for step in self.units[unit]]):
                segments[tuple(chain)] = None
        names = [list(chain) for chain in segments]
        calls = {call.unit: call for call in self.calls}
        return Found(names, dict(self.refused), calls, find_trunks(self.graph, names))

    def _goes_on(self) -> dict[str, str]:
        """The unit after each unit that is not the last of its segment."""
        nexts: dict[str, set[str | None]] = {}
        for call in self.calls:
            alone = len(call.consumers) == 1 and not call.touched
            after = self.calls[call.consumers[0]].unit if alone else None
            nexts.setdefault(call.unit, set()).add(after)
        chained: dict[str, list[Step]] = {}
        goes_on: dict[str, str] = {}
        before: dict[str, set[str | None]] = {}
        for call in self.calls:
            maker = None if call.made_by is None else self.calls[call.made_by].unit
            before.setdefault(call.unit, set()).add(maker)
        for unit in nexts:
            steps = chained.setdefault(unit, list(self.units[unit]))
            (after, *others) = nexts[unit]
            if others or after is None or unit in self.refused or after in self.refused:
                continue
            if before[after] != {unit} or after in chained:
                continue
            if may_follow(steps, self.units[after]):
                goes_on[unit] = after
                chained[after] = [*steps, *self.units[after]]
        return goes_on


class _Touches(TorchFunctionMode):
    """Notes every function outside of the units that sees a marked tensor."""

    def __init__(self, run: _Run):
        super().__init__()
        self.run = run

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.run.inside:
            return func(*args, **(kwargs or {}))
        self.run.touch((args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if is_sum(func, args, kwargs):
            self.run.graph.total(args, out)
        else:
            self.run.graph.touch((args, kwargs or {}))
        return out


@contextlib.contextmanager
def forwards_of(model: nn.Module, units: Collection[str], call: Any) -> Iterator[None]:
    """While the context lasts, ``call(unit, forward, args, kwargs)`` stands for units' forwards."""
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for unit in units:
            module = model.get_submodule(unit)
            changed.append((module, vars(module).get("forward")))
            vars(module)["forward"] = _standing_for(unit, module.forward, call)
        yield
    finally:
        for module, own in changed:
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


def _standing_for(unit: str, forward: Any, call: Any) -> Any:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return call(unit, forward, args, kwargs)

    return stand_in


def _is_activation(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim() > 1


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """The network in training mode, at reset; everything as it was afterwards."""
    random = RandomState(torch.device("cpu")), RandomState(_device_of(model))
    states = [own.get() for own in random]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with at_rest(model):
            model.train()
            yield
    finally:
        for own, state in zip(random, states, strict=True):
            own.set(state)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def segment_of(model: nn.Module, names: Sequence[str]) -> Segment:
    """The segment of the modules of these names."""
    steps: list[Step] = []
    for name in names:
        more = steps_of(name, model.get_submodule(name))
        assert more is not None  # it was one when the segment was found
        steps += more
    return Segment(steps)
