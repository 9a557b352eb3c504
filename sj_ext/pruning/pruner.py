"""What all pruners share: arguments, stages, masks, resuming, and when a step counts.

One file, for its length is that of one class: what a user reads off a pruner are properties of the
object that steps, and a page of the reference.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .. import checks
from ..arguments import checked
from . import best, bits, masks, ranks, saved, sharding
from .account import Account
from .atoms import Graph
from .budgets import Budget, Resources, limits
from .channels import Channels
from .counting import StepCounter
from .dependency import trace
from .glimpse import Glimpse
from .importance import Importance, Magnitude
from .layers import Chooser, Site, choose
from .report import History, overview, plan_table
from .resources import LayerInfo
from .schedule import Schedule
from .selection import Cut, NotFinite
from .stages import Stages
from .survey import survey
from .units import Scored, Weights
from .wrappers import plain_name, unwrapped

__all__ = ["Pruner"]

FORMAT = 1


@checked
class Pruner:
    """Base of all pruners; a subclass defines :meth:`_compress`.

    Args:
        model: the network, changed in place: chosen layers get masks (``sj_ext.pruning.masks``).
        budget: share of the dense network's resource that may be left, in (0, 1]; or an amount per
            sample: a whole number above 1, or text with a unit, such as ``1_000_000`` of
            ``'params'``, ``'50 nJ'`` of ``'energy'``, ``'2 ms'`` of ``'latency'``, ``'3 MMAC'`` of
            ``'flops'``. One per resource, or a mapping from resource (or its name) to budget.
        resource: ``'params'``, ``'flops'``, ``'synops'``, ``'latency'``, ``'energy'``, or a
            :class:`~sj_ext.pruning.resources.Resource`; or several.
        schedule: a :class:`~sj_ext.pruning.schedule.Schedule` whose last level is the first budget,
            a number of optimizer steps for the default schedule, or None for 1000 of them.
        layers: names, types or predicates ``(name, module) -> bool``; None for every linear and
            convolutional layer, ``nn.MultiheadAttention`` and ``nn.LSTM``, ``GRU`` and ``RNN``. All
            others stay dense and count as such; so do frozen layers, unless they are named in full.
            A bare parameter is pruned, and counts, if it is named in full.
        first: prune the first layer too. A layer given by its full name is pruned in any case.
        last: prune the last layer too. None: yes for weights, no for channels, which would remove
            outputs of the network.
        granularity: ``'weight'``, or ``'channel'`` for whole output channels.
        importance: which weights go first: an :class:`~sj_ext.pruning.Importance`, such as
            :class:`~sj_ext.pruning.Taylor`; None for :class:`~sj_ext.pruning.Magnitude`.
        optimizer: the optimizer that trains the model. Its steps are then counted by its own hook
            and its learning rates used; otherwise a step is noticed by the change of the weights.
        example_input: one batch, a tuple of several inputs or a mapping of named ones. ``'flops'``
            needs it, and amounts of ``'synops'`` and ``'energy'``, which it measures before any
            training.
        writer: an object with ``add_scalar(tag, value, step)``, such as TensorBoard's.
        log_every: steps between two rows of :attr:`history`.
        across_ranks: in an initialised process group, measurements are averaged over all ranks,
            and every cut is compared with theirs. False where each rank trains a network of its
            own, or only one rank prunes.
        **arguments: what resources that are given by name take besides: ``latency_table``, from
            :func:`~sj_ext.pruning.measure_latency`, for ``'latency'``.

    Raises:
        TypeError: an argument of the wrong kind.
        RuntimeError: channels of a network that ``fully_shard`` has split already.
        ValueError: a budget outside (0, 1] or below what the dense layers cost, no layer left,
            layers that are pruned already, lazy parameters, weights that are NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        budget: Budget,
        resource: Resources = "params",
        schedule: Schedule | int | None = None,
        layers: Chooser | Iterable[Chooser] | None = None,
        first: bool = False,
        last: bool | None = None,
        granularity: str = "weight",
        importance: Importance | None = None,
        optimizer: Optimizer | None = None,
        example_input: Any = None,
        writer: Any = None,
        log_every: int = 10,
        across_ranks: bool = True,
        **arguments: Any,
    ):
        checks.module("model", model)
        checks.choice("granularity", granularity, ("weight", "channel"))
        checks.integer("log_every", log_every, at_least=1)
        self.across_ranks = checks.flag("across_ranks", across_ranks)
        self.model = model = unwrapped(model)
        sharding.reshard(model)
        self.granularity = granularity
        self.importance = Magnitude() if importance is None else importance
        if not isinstance(self.importance, Importance):
            raise TypeError(f"importance must be an Importance or None, got {importance!r}")
        self._targets = limits(budget, resource, {"example_input": example_input, **arguments})
        self.resources = [target.resource for target in self._targets]
        last = granularity == "weight" if last is None else last
        chosen, known = choose(model, layers, first, last)
        self._check_unpruned(chosen)
        infos, shared = survey(chosen, known)
        self._layers = [info for info in infos if info.pruned]
        self._small = sum(info.weights for info in infos) <= 1 << 20
        self._names = [info.name for info in infos if info.pruned]
        self._check_weights()
        # everything that can refuse the arguments comes before the model is changed
        self._example = example_input
        self.units = self._make_units()
        self._example = None
        self._account = Account(infos, self.units, self._targets)
        self._bind(infos, schedule)
        for layer in self._layers:
            masks.attach(layer.module, layer.attribute)
        for site, owner in shared:
            own = masks.own_mask(owner.module, owner.attribute)
            masks.attach(site.module, site.attribute, own)

        self._glimpse = None if self.units.learned else Glimpse(model)
        #: optimizer steps that counted
        self.steps_done = 0
        self._stages = Stages(self.schedule, self._targets)
        self._best: dict[str, Any] | None = None
        self._verify_masks = False
        self.writer, self.log_every = writer, log_every
        #: rows of the report
        self.history = History(self._names)
        self._counter = StepCounter(self._layers, optimizer)
        self._begin_stage()

    def _bind(self, infos: Sequence[LayerInfo], schedule: Schedule | int | None) -> None:
        """Show the network to the resources, and make the schedule; or leave nothing behind."""
        try:
            for res in self.resources:
                res.across_ranks = self.across_ranks
                res.bind(self.model, infos)
            for target in self._targets:
                target.measure()
            self.schedule = self._make_schedule(schedule)
            self._floors_checked = all(res.ready for res in self.resources)
            if self._floors_checked:
                self._account.require_possible()
        except Exception:
            for res in self.resources:
                res.close()
            raise

    def _make_units(self) -> Weights:
        # the magnitude needs no copy of the weights
        other = None if isinstance(self.importance, Magnitude) else self.importance
        if self.granularity == "weight":
            return Weights(self._layers) if other is None else Scored(self._layers, other)
        graph = None if self._example is None else self._trace(self._example)
        return Channels(self._layers, self.model, graph, other)

    def _trace(self, example_input: Any) -> Graph:
        if any(sharding.is_sharded(parameter) for parameter in self.model.parameters()):
            raise RuntimeError(
                "granularity 'channel' follows the data flow through the whole weights, and "
                "fully_shard (FSDP2) has split them: build the pruner before fully_shard is "
                "called, with example_input"
            )
        return trace(self.model, example_input)

    def _whole(self) -> contextlib.AbstractContextManager[None]:
        """Within it, parameters that are split over ranks are whole."""
        if not any(sharding.is_sharded(layer.parameter) for layer in self._layers):
            return contextlib.nullcontext()
        return sharding.gathered(self._places(), not isinstance(self.importance, Magnitude))

    def _places(self) -> list[tuple[nn.Module, str]]:
        """Every parameter in which zeros are held: its module, and its name there."""
        return [(module, name) for _, module, name, _ in masks.all_masks(self.model)]

    def _make_schedule(self, schedule: Schedule | int | None) -> Schedule:
        target = self._targets[0]
        if schedule is None:
            return Schedule.geometric(target.share)
        if isinstance(schedule, int):
            checks.integer("schedule", schedule, at_least=1)
            return Schedule.geometric(target.share, schedule)
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule must be a Schedule, a number of steps or None, got {schedule!r}"
            )
        if target.amount is None and schedule.stages[-1].level != target.share:
            raise ValueError(
                f"the last level of schedule must be the (first) budget {target.share}, "
                f"got {schedule.stages[-1].level}"
            )
        return schedule

    # ---- what a user reads --------------------------------------------------------------------

    @property
    def budgets(self) -> list[float]:
        """The budget of each resource, as a share of the dense network."""
        return [target.share for target in self._targets]

    def floor(self) -> float | dict[str, float]:
        """The least that each resource can come down to; by name where there are several.

        Raises:
            RuntimeError: a resource is measured while training and no forward was seen yet; with
                ``example_input`` it is known when the pruner is built.
        """
        values = self._account.floor()
        if len(values) == 1:
            return values[0]
        return {res.name: value for res, value in zip(self.resources, values, strict=True)}

    @property
    def plan(self) -> str:
        """A table of the stages, and of what each layer costs: dense, and at least."""
        return plan_table(self._account, self._stages)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer whose learning rates are used; give another when it takes its place."""
        return self._counter.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer | None) -> None:
        self._counter.optimizer = optimizer

    @property
    def density(self) -> float:
        """Share of the weights of all linear and convolutional layers that is kept."""
        return self._account.density

    @property
    def kept(self) -> int:
        """Number of weights kept, layers that are left dense included."""
        return sum(self._account.kept())

    @property
    def resource(self) -> float | dict[str, float]:
        """The resource, 1 for the dense network; by name where there are several.

        Raises:
            RuntimeError: the resource is measured while training and no forward was seen yet.
        """
        values = self._account.values()
        if len(values) == 1:
            return values[0]
        return {res.name: value for res, value in zip(self.resources, values, strict=True)}

    @property
    def kept_shares(self) -> dict[str, float]:
        """Kept share of each pruned layer."""
        return self._account.shares

    @property
    def layer_counts(self) -> dict[str, tuple[int, int]]:
        """Of each layer that counts, the number of its weights, dense and kept."""
        pairs = zip(self._account.layers, self._account.kept(), strict=True)
        return {layer.name: (layer.weights, left) for layer, left in pairs}

    @property
    def total_steps(self) -> int:
        """Optimizer steps until :attr:`finished`, as announced."""
        return self.schedule.steps

    @property
    def finished(self) -> bool:
        """The budget is met and the last fine-tuning is over."""
        return self._stages.finished

    @property
    def phase(self) -> str:
        """``'compress'``, ``'finetune'`` or ``'finished'``."""
        return self._stages.phase

    def __repr__(self) -> str:
        return overview(self, self._account, self._stages)

    # ---- stepping -----------------------------------------------------------------------------

    def step(self) -> bool:
        """One step of pruning; to be called after ``optimizer.step()``.

        Nothing happens where the optimizer has not stepped since the last call (gradient
        accumulation, a step that AMP skipped).

        Returns:
            True if the pruner advanced.

        Raises:
            RuntimeError: the masks in the model are not those of the pruner's state, a resource
                that is measured while training has not been, or a stage ended above its level.
            ValueError: weights are NaN or infinite (the layer is named).
        """
        sharding.reshard(self.model)
        if not sharding.anywhere(self._counter.stepped, (x.parameter for x in self._layers)):
            return False
        with torch.no_grad():
            for layer in self._layers:
                masks.own_mask(layer.module, layer.attribute)  # or says why there is none
            if self._glimpse is not None:
                self._learn(self._glimpse)
            if self._verify_masks:
                self._check_masks()
            if self.finished:
                self._hold()
                self._counter.forget()
                return False
            self.steps_done += 1
            self._stages.step += 1
            # sums find NaN and infinities; a large network takes them now and then, to save a pass
            # (while compressing the selection sees NaN in any case)
            if self._small or self.steps_done % 64 == 0:
                self._check_weights()
            before = (self._stages.number, self._stages.closed)
            if self._stages.closed:
                self._hold()
            else:
                with self._whole():
                    self._measure()
                    try:
                        cuts = self._compress()
                    except NotFinite:
                        self._check_weights()  # says where
                        raise
                    if self._account.met(self._account.cut, self._stages.levels()):
                        self._check_weights()
                        self._close(cuts)
                self._compare_ranks(cuts)
            if self._stages.over:
                self._end_stage()
        self._counter.forget()
        changed = before != (self._stages.number, self._stages.closed)
        if changed or self.steps_done % self.log_every == 0 or self.steps_done == 1:
            self._record()
        return True

    def score(self, value: float) -> bool:
        """Tell how good the network is now (higher is better), for example after validation.

        While masks are fixed, the best weights seen are kept, and at the end of the stage the
        network goes on from them. That costs the kept weights once more, and all other parameters
        and buffers; without a call nothing is kept and the last weights go on. NaN is never best.

        Returns:
            True if these are the best of the stage so far.

        Raises:
            RuntimeError: later, at the end of the stage, where the ranks of a process group were
                not told the same: reduce the figure over them first.
        """
        value = float(value)
        known = -math.inf if self._best is None else self._best["score"]
        if not self._stages.closed or not value > known:
            return False
        self._best = best.take(self.model, self._places(), value)
        self._best["step"] = self.steps_done
        return True

    def _compress(self) -> list[tuple[list[int], Cut]]:
        """Cut once: set zeros and the account's ``cut``; at pace 1 the level must be reached.

        Returns:
            Groups of pools, each with the cut of the group.
        """
        raise NotImplementedError

    def _compare_ranks(self, cuts: Sequence[tuple[list[int], Cut]]) -> None:
        """Every selection is that of the other ranks, and so are the masks that are closed."""
        if not (self.across_ranks and ranks.several()):
            return
        kept = [mask.mask for _, _, _, mask in masks.all_masks(self.model) if mask.closed]
        ranks.require_same(
            "the ranks have cut different weights, since theirs differ: begin with the same "
            "weights everywhere and step on averaged gradients, as DistributedDataParallel and "
            "fully_shard see to",
            *(self.steps_done, self._account.cut, *cuts),
            *(bits.pack(mask).numpy().tobytes() for mask in kept),
        )

    # ---- stages -------------------------------------------------------------------------------

    def _begin_stage(self) -> None:
        self._best = None

    def _measure(self) -> None:
        self.importance.update(self._layers)
        for res in self.resources:
            res.left = self._account.left()
            res.update()
        if not self._floors_checked:
            self._account.require_possible()
            self._floors_checked = True
        for target in self._targets:
            target.measure()

    def _close(self, cuts: Sequence[tuple[list[int], Cut]]) -> None:
        for pools, cut in cuts:
            self.units.write_masks(pools, cut)
        for module, name in self._places():
            masks.own_mask(module, name).close()
        self._stages.closed = True
        for res in self.resources:
            res.freeze(True)

    def _end_stage(self) -> None:
        if not self._stages.closed:
            self._refuse_to_end()
        if self.across_ranks and ranks.several():
            told = None if self._best is None else (self._best["score"], self._best.get("step"))
            ranks.require_same(
                "pruner.score() was not told the same on all ranks, which would go on from "
                "different weights: reduce the figure over the ranks before",
                told,
            )
        if self._best is not None:
            best.restore(self.model, self._places(), self._best)
        self._stages.go_on()
        if self.finished:
            self._best = None
            for res in self.resources:
                res.close()
            return
        for module, name in self._places():
            masks.own_mask(module, name).open()
        for res in self.resources:
            res.freeze(False)
        self._begin_stage()

    def _learn(self, glimpse: Glimpse) -> None:
        """Follow the data flow of the first forward pass that was seen, if there was one."""
        self._glimpse = None
        seen = glimpse.take()
        self.units.learn(None if seen is None else self._trace(seen))

    def _hold(self) -> None:
        """Zeros in their places, unless the optimizer's own hook has just put them there."""
        for module, name in self._places():
            mask = masks.own_mask(module, name)
            if not mask.fresh:
                mask.hold()
            mask.fresh = False

    def _refuse_to_end(self) -> None:
        levels = zip(self.resources, self._account.values(), self._stages.levels(), strict=True)
        above = [f"{res.name!r} at {v:.6g} of {level:.6g}" for res, v, level in levels if v > level]
        raise RuntimeError(
            f"stage {self._stages.number + 1} is over and its level is not met: resource "
            f"{', '.join(above)}, with all cut that may be; what the dense layers cost has risen "
            "since the start, or the resource rises as weights go: raise the budget, or prune more "
            "layers"
        )

    # ---- checks -------------------------------------------------------------------------------

    def _check_unpruned(self, chosen: Mapping[str, Site]) -> None:
        for name, site in chosen.items():
            masks.check_unpruned(name, site.module, site.attribute)
            if self.granularity == "channel" and getattr(site.module, "bias", None) is not None:
                masks.check_unpruned(_name_of(self.model, site.module), site.module, "bias")

    def _check_weights(self) -> None:
        for layer in self._layers:
            # a sum is finite unless an element is not (or all are beyond any training)
            if not sharding.finite(layer.parameter):
                raise ValueError(
                    f"weights of {layer.name} are NaN or infinite: the optimizer stepped on NaN or "
                    "infinite gradients, or the learning rate is too high"
                )

    def _check_masks(self) -> None:
        self._verify_masks = False
        fits = [masks.own_mask(*place).verify() for place in self._places()]
        if not all(fits):
            module, _ = self._places()[fits.index(False)]
            raise RuntimeError(
                f"the masks of the pruner's state do not belong to the weights: layer "
                f"{_name_of(self.model, module)!r} has as large weights where they are cut as "
                "where they are kept; load the model's state_dict of the same moment too"
            )

    # ---- report and checkpoints ---------------------------------------------------------------

    def _record(self) -> None:
        row = {
            "step": self.steps_done,
            "stage": self._stages.number,
            "phase": self.phase,
            "density": self.density,
            **{
                f"resource/{res.name}": value
                for res, value in zip(self.resources, self._account.values(), strict=True)
            },
            **self._multipliers(),
        }
        self.history.add(row, self.kept_shares)
        if self.writer is not None:
            self.history.write_last(self.writer)

    def _multipliers(self) -> dict[str, float]:
        return {}

    def _identity(self) -> dict[str, Any]:
        return {
            "layers": {
                plain_name(layer.name): list(layer.parameter.shape) for layer in self._layers
            },
            "pruner": type(self).__name__,
            "granularity": self.granularity,
            "budgets": {
                target.resource.name: target.share if target.amount is None else target.given
                for target in self._targets
            },
            # levels of an amount follow from what the dense network costs
            "schedule": [
                [
                    stage.level if self._targets[0].amount is None else None,
                    stage.compress_steps,
                    stage.finetune_steps,
                ]
                for stage in self.schedule.stages
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the pruner needs to go on to the bit.

        Closed masks are here, a bit per weight; weights are in ``model.state_dict()`` of the same
        moment.
        """
        return {
            "format": FORMAT,
            "identity": self._identity(),
            "steps_done": self.steps_done,
            **self._stages.state_dict(),
            "cut": list(self._account.cut),
            "resources": [res.state_dict() for res in self.resources],
            "best": copy.deepcopy(self._best),
            "levels": [stage.level for stage in self.schedule.stages],
            "masks": saved.packed_masks(self.model) if self._stages.closed else None,
            "history": self.history.state_dict(),
            "method": self._method_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Load ``model.state_dict()`` of the same moment too, before or after.

        Raises:
            ValueError: the state is of another format, network, budget, schedule or pruner.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"state must have format {FORMAT}, got {state.get('format')!r}: it is no state of "
                "a pruner, or of another release"
            )
        saved.require_same(self._identity(), state["identity"])
        self.steps_done = state["steps_done"]
        if "levels" in state:
            self.schedule = self._stages.schedule = self.schedule.at(state["levels"])
        self._stages.load_state_dict(state)
        self._account.cut = list(state["cut"])
        for res, measured in zip(self.resources, state["resources"], strict=True):
            res.load_state_dict(measured)
            res.freeze(self._stages.closed)
            if self.finished:
                res.close()
        for target in self._targets:
            target.measure()
        self._floors_checked = self._floors_checked or self.steps_done > 0
        self._best = copy.deepcopy(state["best"])
        self.history.load_state_dict(state["history"])
        self._load_method_state(state["method"])
        for _, _, _, mask in masks.all_masks(self.model):
            mask.open()
        self._verify_masks = self._stages.closed
        if self._stages.closed:
            saved.load_masks(self.model, state.get("masks"))
        self._counter.forget()

    def _method_state(self) -> dict[str, Any]:
        return {}

    def _load_method_state(self, state: Mapping[str, Any]) -> None:
        pass


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is wanted), "?")
