"""Training a network that exists in a fraction of the memory: segments, recorded as bits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._compile import _disable_dynamo  # as torch.compiler.disable, which imports a compiler
from torch.utils._pytree import tree_leaves

from .. import checks
from ..arguments import checked
from .budget import Plan, bytes_of, cheapest_plan
from .function import run_segment
from .kinds import entered_through_hooks, steps_of, why_not
from .pending import Pending, computed
from .report import Compaction
from .route import Route
from .saved import packed_saves
from .segment import Segment, may_follow
from .streams import Trunk
from .trace import find_segments, forwards_of, left_as_it_was, segment_of
from .trunk import TrunkForward, blocks_of
from .undoing import run_trunk

__all__ = ["compact"]


@checked
def compact(
    model: nn.Module,
    example_input: Any = None,
    *,
    slices: int = 1,
    recompute: str = "segments",
    keep: str = "bits",
    exclude: Collection[str] = (),
    segments: Sequence[Sequence[str]] | None = None,
    budget: str | float | None = None,
) -> Any:
    r"""``model`` with the same parameters, outputs and gradients, which holds bits.

    The network is cut into segments: convolution or linear layer, normalisation, neuron, pooling.
    In training, each is one autograd function. It holds its input as bit planes if these are
    spikes or small sums of spikes (looked at on every call; anything else is held as it is), the
    spikes of its own neurons at one bit each, and the mean and variance of its batch norm. The
    backward pass runs it again from this record. Its neurons fire again what is on record, so no
    rounding can flip a spike. With :math:`z` the input of the batch norm, the sums over the whole
    batch that its gradient needs are taken in a pass of their own, so that the recomputation goes
    slice by slice:

    .. math::
        \nabla z = \frac{\gamma}{\sqrt{v + \epsilon}} \left(\nabla y
        - \frac{1}{n} \sum \nabla y - \frac{\hat z}{n} \sum \nabla y\, \hat z\right).

    Residual blocks of segments that hand a stream on, which nothing else reads, are one function
    together. The stream is not kept: where a neuron needs it, it is rebuilt from the layer above,
    :math:`x_l = x_{l+1} - F_l`, with :math:`F_l` from the record.

    What is in no segment runs as it is; what it saves is held as bits where that loses nothing.
    In evaluation mode, without gradients, and where a module of a segment has hooks or a neuron
    was given a potential, segments run as they are, too.

    The network that comes back shares all modules, parameters and buffers with ``model``, which
    can be run as before. After a forward pass in training the potentials of neurons in segments
    are not kept: reset the network before the next one.

    Args:
        model: a network of modules that work on sequences ``[T, N, *]``.
        example_input: the arguments that the network is run on once to find its segments: a
            tensor, or a tuple of arguments. Two small images do. The network is left as it was.
        slices: into how many slices the batch is cut in a segment, at most: a batch of fewer
            samples is cut into single samples. With 1 each convolution is computed 1.33 times as
            often as in plain training, with more twice as often, and what is alive at one moment
            is that of one slice.
        recompute: ``'segments'``, or ``'nothing'``: no segments, only what PyTorch saves is held
            as bits where that loses nothing.
        keep: ``'bits'``, or ``'inputs'``: a segment also holds the inputs of its norm and its
            neuron that its weights give, as floats. Then no convolution is computed again, however
            many slices there are.
        exclude: names of modules that are to be in no segment.
        segments: names of the modules of each segment, in the order in which they run, for a
            network that cannot be run on an example; the output of each module but the last must
            go to the next one and nowhere else.
        budget: what a training step may need at its peak, ``'8 GB'`` or a number of bytes, its
            gradients included, parameters and the optimiser's state not. ``example_input`` is then
            a batch as it is trained on. One step of each plan is counted, from the one that
            is fastest on, and the first that fits is taken; ``slices``, ``recompute``
            and ``keep`` have no say.

    Returns:
        A network of a subclass of the class of ``model``; its attribute ``compaction`` says, and
        prints, what was found.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``slices`` is below 1, a name is that of no module, ``segments`` cannot be
            segments, or no plan fits the budget: then it says how many samples can fit at most.
        RuntimeError: in training, a neuron was not reset since the last forward pass, or the
            network takes another path than on the example.
    """
    _check(model, slices, recompute, keep, exclude)
    if budget is not None:
        return _within(bytes_of(budget), model, _arguments(example_input), exclude)
    if recompute == "nothing":
        return _share(model, Compaction([], slices=slices))
    if segments is not None:
        return _share(model, Compaction(_given(model, segments), slices=slices, keep=keep))
    found = find_segments(model, _arguments(example_input), exclude)
    return _share(model, Compaction.of(model, found, slices, keep))


def _arguments(example_input: Any) -> tuple[Any, ...]:
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    if not any(isinstance(value, torch.Tensor) for value in example):
        raise TypeError(
            "example_input must be a tensor or a tuple of arguments with one, got "
            f"{type(example_input).__name__}; without an example give segments=[...]"
        )
    return example


def _within(budget: int, model: nn.Module, example: Any, exclude: Collection[str]) -> Any:
    """The network under the cheapest plan for batches like ``example``."""
    found = find_segments(model, example, exclude)

    def net_of(plan: Plan) -> Any:
        if plan.recompute == "nothing":
            return _share(model, Compaction([], slices=plan.slices))
        return _share(model, Compaction.of(model, found, plan.slices, plan.keep))

    def run(plan: Plan) -> Callable[[], None]:
        def step() -> None:
            outputs = [y for y in tree_leaves(net_of(plan)(*example)) if _learns(y)]
            learns = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad([y.sum() for y in outputs], learns, allow_unused=True)
            outputs.clear()

        def at_reset() -> None:
            with left_as_it_was(model), torch.enable_grad():
                step()

        return at_reset

    chosen, peak = cheapest_plan(budget, found.samples, run)
    net = net_of(chosen)
    net.__dict__["compaction"] = dataclasses.replace(net.compaction, peak=peak)
    return net


def _learns(y: Any) -> bool:
    return isinstance(y, torch.Tensor) and y.requires_grad


def _check(model: Any, slices: Any, recompute: Any, keep: Any, exclude: Any) -> None:
    checks.module("model", model)
    if isinstance(model, _Compacted):
        raise TypeError("model is compact already: give compact the network that it was made from")
    checks.integer("slices", slices, at_least=1)
    checks.choice("recompute", recompute, ("segments", "nothing"))
    checks.choice("keep", keep, ("bits", "inputs"))
    if isinstance(exclude, str) or not isinstance(exclude, Collection):
        raise TypeError(f"exclude must be a collection of names of modules, got {exclude!r}")
    names = dict(model.named_modules(remove_duplicate=False))
    for name in exclude:
        if name not in names:
            raise ValueError(f"exclude: the network has no module {name!r}")


def _given(model: nn.Module, segments: Sequence[Sequence[str]]) -> list[list[str]]:
    """Segments that the user names, checked."""
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: set[str] = set()
    for names in segments:
        steps: list[Any] = []
        for name in names:
            if name not in modules:
                raise ValueError(f"segments: the network has no module {name!r}")
            more = steps_of(name, modules[name])
            if more is None or name in seen:
                how = "stands there twice" if name in seen else "cannot be in a segment"
                raise ValueError(f"segments: {name!r} ({type(modules[name]).__name__}) {how}")
            if not may_follow(steps, more):
                raise ValueError(
                    f"segments: {name!r} cannot follow in {list(names)}: a segment has one batch "
                    "norm at most, and no weights after a neuron that is not its first module"
                )
            seen.add(name)
            steps += more
    return [list(names) for names in segments]


class _Compacted(nn.Module):
    """What makes a class of networks compact; the class itself comes after it."""

    compaction: Compaction

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own forward, in which segments stand for their modules."""
        return _run(self, super().forward, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (type(self).__mro__[2],), dict(self.__dict__)


@functools.cache
def _compact_class(cls: type) -> type:
    made = type(f"Compact{cls.__name__}", (_Compacted, cls), {"__doc__": cls.__doc__})
    made.__module__ = cls.__module__
    return made


def _empty(cls: type) -> Any:
    made: Any = _compact_class(cls)
    return made.__new__(made)


def _share(model: nn.Module, plan: Compaction) -> Any:
    """A compact network that has the very modules, parameters and buffers of ``model``."""
    made = _empty(type(model))
    made.__dict__.update(model.__dict__)
    made.__dict__["compaction"] = plan
    return made


@_disable_dynamo  # it would compile the stand-ins; what a user compiled inside stays compiled
def _run(net: Any, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _Step(net, forward) as step:
        return step.run(args, kwargs)


# Modules stand in for each other while a network runs: threads that share one take turns.
_TURN = threading.RLock()


class _Place(NamedTuple):
    """Where a module stands in a segment, and whether the segment can be run as one now."""

    segment: Segment
    names: tuple[str, ...]
    place: int
    ready: bool


def _is_batch(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and (
        isinstance(x, Pending) or (x.is_floating_point() and x.numel() > 0 and x.dim() > 1)
    )


class _Step(contextlib.ExitStack):
    """One forward pass of a compact network."""

    def __init__(self, net: Any, forward: Any):
        super().__init__()
        self.net, self.forward = net, forward
        self.slices: int = net.compaction.slices
        self.keeps: bool = net.compaction.keep == "inputs"
        self.places: dict[str, _Place] = {}
        #: the trunk that a module is in, where it can be run as one
        self.trunks: dict[str, Trunk] = {}
        self.routes: dict[int, Route] = {}

    def run(self, args: Any, kwargs: Any) -> Any:
        """The network's output."""
        training = torch.is_grad_enabled()
        for names in self.net.compaction.segments:
            if any(kind is None for kind in map(self._steps, names)):
                continue  # its class was changed since, as FSDP does
            segment = segment_of(self.net, names)
            ready = training and all(why_not(step) is None for step in segment.steps)
            ready = ready and not entered_through_hooks(self.net, names)
            for place, name in enumerate(names):
                self.places[name] = _Place(segment, tuple(names), place, ready)
        for trunk in self.net.compaction.trunks:
            places = [self.places.get(name) for names in trunk.segments for name in names]
            if entered_through_hooks(self.net, list(trunk.values)):
                continue
            if all(place is not None and place.ready for place in places):
                self.trunks.update(dict.fromkeys(trunk.values, trunk))
        self.enter_context(_TURN)
        self.enter_context(forwards_of(self.net, self.places, self._call))
        if training:
            self.enter_context(packed_saves())
        return computed(self.forward(*args, **kwargs))

    def _steps(self, name: str) -> Any:
        return steps_of(name, self.net.get_submodule(name))

    def _call(self, unit: str, forward: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        segment, names, place, ready = self.places[unit]
        x: Any = args[0] if len(args) == 1 and not kwargs else None
        if unit in self.trunks and (route := self._route(self.trunks[unit], unit, x)) is not None:
            return Pending.on(route, route.call(unit), unit)
        if place == 0:
            segment.check_reset()  # only now: a network may reset itself as it begins
            ready = ready and segment.starts_anew() and _is_batch(x)
            x = computed(x)
        else:
            ready = isinstance(x, Pending) and x.is_open() and x.units == names[:place]
        if not ready:
            return forward(*computed(args), **computed(kwargs))
        if place:
            x = x.hand_on()
        if place + 1 < len(names):
            learns = x.requires_grad or any(p.requires_grad for p in segment.parameters())
            return Pending.of(x, names[: place + 1], self._as_they_are, learns)
        return run_segment(segment, x, self.slices, self.keeps)

    def _route(self, trunk: Trunk, unit: str, x: Any) -> Route | None:
        """The pass through a trunk that a call goes on with or begins, None if it does neither."""
        if isinstance(x, Pending):
            route, number = x.place()
            return route if route is not None and route.goes_on_with(unit, number) else None
        if not _is_batch(x) or trunk.parents[unit] != trunk.input:
            return None
        begun = self.routes.get(trunk.output)
        if begun is not None and begun.number_of(x) is not None:
            return begun if begun.is_open else None
        blocks = blocks_of(trunk, functools.partial(segment_of, self.net), leads=self.slices > 1)
        segments = [segment for block in blocks for segment in block.segments]
        for segment in segments:
            segment.check_reset()
        if not all(segment.starts_anew() for segment in segments):
            return None
        if len({segment.batch_axis for segment in segments}) > 1:
            return None

        def module(name: str, value: torch.Tensor) -> torch.Tensor:
            return self._as_they_are(value, (name,))

        def finish(stream: list[torch.Tensor]) -> torch.Tensor:
            return run_trunk(TrunkForward(blocks, self.slices, self.keeps), stream)

        self.routes[trunk.output] = Route(trunk, x, module, finish)
        return self.routes[trunk.output]

    def _as_they_are(self, x: torch.Tensor, units: tuple[str, ...]) -> torch.Tensor:
        for unit in units:
            module: Any = self.net.get_submodule(unit)
            x = type(module).forward(module, x)
        return x
