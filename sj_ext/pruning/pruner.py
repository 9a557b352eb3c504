"""What all pruners share: budgets, stages, masks, resuming, and when a step counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from . import masks
from .layers import Chooser, choose, weight_layers
from .report import History
from .resources import LatencyTable, LayerInfo, Resource
from .resources import resource as resource_by_name
from .schedule import Schedule
from .selection import Cut, NotFinite, Ranking, smallest_count
from .units import Channels, Weights, following_norms

__all__ = ["Pruner"]

FORMAT = 1

Budget = float | Sequence[float] | Mapping[str | Resource, float]
Resources = str | Resource | Sequence[str | Resource]


class Pruner:
    """Base of all pruners; a subclass defines :meth:`_compress`.

    Args:
        model: the network, changed in place: chosen layers get masks (``sj_ext.pruning.masks``).
        budget: share of the dense network's resource that may be left, in (0, 1]; one per resource,
            or a mapping from resource (or its name) to budget.
        resource: ``'params'``, ``'flops'``, ``'synops'``, ``'latency'``, ``'energy'``, or a
            :class:`~sj_ext.pruning.resources.Resource`; or several.
        schedule: a :class:`~sj_ext.pruning.schedule.Schedule` whose last level is the first budget,
            a number of optimizer steps for the default schedule, or None for 1000 of them.
        layers: names, types or predicates ``(name, module) -> bool``; None for every linear and
            convolutional layer. All others stay dense and count as such.
        first: prune the first layer too. A layer given by its full name is pruned in any case.
        last: prune the last layer too. None: yes for weights, no for channels, which would remove
            outputs of the network.
        granularity: ``'weight'``, or ``'channel'`` for whole output channels.
        optimizer: the optimizer that trains the model. Its steps are then counted by its own hook
            and its learning rates used; otherwise a step is noticed by the change of the weights.
        example_input: one batch, for ``'flops'``.
        latency_table: for ``'latency'``.
        writer: an object with ``add_scalar(tag, value, step)``, such as TensorBoard's.
        log_every: steps between two rows of :attr:`history`.

    Raises:
        TypeError: an argument of the wrong kind.
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
        optimizer: Optimizer | None = None,
        example_input: torch.Tensor | None = None,
        latency_table: LatencyTable | None = None,
        writer: Any = None,
        log_every: int = 10,
    ):
        if granularity not in ("weight", "channel"):
            raise ValueError(f"granularity must be 'weight' or 'channel', got {granularity!r}")
        if not isinstance(log_every, int) or log_every < 1:
            raise ValueError(f"log_every must be an integer of at least 1, got {log_every!r}")
        self.model = model
        self.granularity = granularity
        self.budgets, self.resources = _budgets(budget, resource, example_input, latency_table)
        self.schedule = _schedule(schedule, self.budgets[0])
        last = granularity == "weight" if last is None else last
        chosen = choose(model, layers, first, last)
        for name, module in chosen.items():
            masks.check_unpruned(name, module)
        # a weight that several layers share is one weight
        self._infos: list[LayerInfo] = []
        self._modules: list[nn.Module] = []
        owners: dict[int, str] = {}
        shared: list[tuple[nn.Module, nn.Module]] = []
        by_name = weight_layers(model)
        pruned = {id(module.weight) for module in chosen.values()}
        for name, module in by_name.items():
            weight = masks.parameter_of(module)
            if id(weight) in owners:
                if id(weight) in pruned:
                    shared.append((module, by_name[owners[id(weight)]]))
                continue
            owners[id(weight)] = name
            self._infos.append(LayerInfo(name, module, weight.numel(), id(weight) in pruned))
            if id(weight) in pruned:
                self._modules.append(module)
        self._where = [i for i, info in enumerate(self._infos) if info.pruned]
        self._small = sum(info.weights for info in self._infos) <= 1 << 20
        self._check_weights()
        # everything that can refuse the arguments comes before the model is changed
        if granularity == "weight":
            self.units = Weights(self._modules)
        else:
            self.units = Channels(self._modules, following_norms(model, self._modules))
        try:
            for res in self.resources:
                res.bind(model, self._infos)
                if res.ready:
                    self._check_floor(res)
        except Exception:
            for res in self.resources:
                res.close()
            raise
        self._floors_checked = all(res.ready for res in self.resources)
        for module in self._modules:
            masks.attach(module)
        for module, owner in shared:
            masks.attach(module, masks.own_mask(owner))

        #: optimizer steps that counted
        self.steps_done = 0
        self._stage, self._stage_step = 0, 0
        self._closed = False
        self._cut = [0] * len(self._modules)
        self._values: list[float] | None = None
        self._best: dict[str, Any] | None = None
        self._verify_masks = False
        self.writer, self.log_every = writer, log_every
        #: rows of the report
        self.history = History([info.name for info in self._pruned_infos])
        self.optimizer = optimizer
        self._stepped = False
        if optimizer is not None:
            optimizer.register_step_post_hook(self._after_optimizer)
        self._remember_versions()
        self._begin_stage()

    # ---- what a user reads --------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Share of the weights of all linear and convolutional layers that is kept."""
        return sum(self._kept()) / sum(info.weights for info in self._infos)

    @property
    def kept(self) -> int:
        """Number of weights kept, layers that are left dense included."""
        return sum(self._kept())

    @property
    def resource(self) -> float | dict[str, float]:
        """The resource, 1 for the dense network; by name where there are several.

        Raises:
            RuntimeError: the resource is measured while training and no forward was seen yet.
        """
        values = self._resource_values(self._cut)
        if len(values) == 1:
            return values[0]
        return {res.name: value for res, value in zip(self.resources, values, strict=True)}

    @property
    def kept_shares(self) -> dict[str, float]:
        """Kept share of each pruned layer."""
        kept = self._kept()
        return {self._infos[i].name: kept[i] / self._infos[i].weights for i in self._where}

    @property
    def total_steps(self) -> int:
        """Optimizer steps until :attr:`finished`, as announced."""
        return self.schedule.steps

    @property
    def finished(self) -> bool:
        """The budget is met and the last fine-tuning is over."""
        return self._stage == len(self.schedule.stages)

    @property
    def phase(self) -> str:
        """``'compress'``, ``'finetune'`` or ``'finished'``."""
        return "finished" if self.finished else "finetune" if self._closed else "compress"

    # ---- stepping -----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> bool:
        """One step of pruning; to be called after ``optimizer.step()``.

        Nothing happens where the optimizer has not stepped since the last call (gradient
        accumulation, a step that AMP skipped).

        Returns:
            True if the pruner advanced.

        Raises:
            RuntimeError: the masks in the model are not those of the pruner's state, or a resource
                that is measured while training has not been.
            ValueError: weights are NaN or infinite (the layer is named).
        """
        if not self._optimizer_stepped():
            return False
        if self._verify_masks:
            self._check_masks()
        if self.finished:
            self.units.hold()
            self._remember_versions()
            return False
        self.steps_done += 1
        self._stage_step += 1
        stage = self.schedule.stages[self._stage]
        changed = False
        # sums find NaN and infinities; a large network takes them now and then, to save a pass
        # (while compressing the selection sees NaN in any case)
        if self._small or self.steps_done % 64 == 0:
            self._check_weights()
        if self._closed:
            self.units.hold()
        else:
            for res in self.resources:
                res.update()
            if not self._floors_checked:
                self._require_measured()
                for res in self.resources:
                    self._check_floor(res)
                self._floors_checked = True
            try:
                cuts = self._compress(final=self._stage_step >= stage.compress_steps)
            except ValueError as error:
                self._explain(error)
                raise
            self._values = None
            if self._met(self._cut, self._levels()):
                self._check_weights()
                self._close(cuts)
                changed = True
        if self._stage_step >= stage.compress_steps + stage.finetune_steps:
            self._end_stage()
            changed = True
        self._remember_versions()
        if changed or self.steps_done % self.log_every == 0 or self.steps_done == 1:
            self._record()
        return True

    def score(self, value: float) -> bool:
        """Tell how good the network is now (higher is better), for example after validation.

        While masks are fixed, the best weights seen are kept, and at the end of the stage the
        network goes on from them. That costs the kept weights once more, and all other parameters
        and buffers; without a call nothing is kept and the last weights go on.

        Returns:
            True if these are the best of the stage so far.
        """
        if not self._closed or (self._best is not None and value <= self._best["score"]):
            return False
        ours = {id(masks.parameter_of(module)) for module in self._modules}
        ours |= {id(masks.own_mask(module).mask) for module in self._modules}
        rest = {
            name: tensor.detach().clone()
            for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers())
            if id(tensor) not in ours
        }
        kept = [masks.parameter_of(m).detach()[masks.own_mask(m).mask] for m in self._modules]
        self._best = {"score": value, "kept": kept, "rest": rest}
        return True

    def _compress(self, final: bool) -> list[tuple[list[int], Cut]]:
        """Cut once: set zeros and ``self._cut``. With ``final`` the level must be reached.

        Returns:
            Groups of layers, each with the cut of the group.
        """
        raise NotImplementedError

    # ---- stages -------------------------------------------------------------------------------

    def _begin_stage(self) -> None:
        self._stage_step = 0
        self._best = None

    def _close(self, cuts: Sequence[tuple[list[int], Cut]]) -> None:
        for layers, cut in cuts:
            self.units.write_masks(layers, cut)
        for module in self._modules:
            masks.close(module)
        self._closed = True
        for res in self.resources:
            res.freeze(True)

    def _end_stage(self) -> None:
        if self._best is not None:
            self._restore_best()
        self._stage += 1
        if self.finished:
            self._best = None
            for res in self.resources:
                res.close()
            return
        self._closed = False
        for module in self._modules:
            mask = masks.own_mask(module)
            mask.closed = False
            mask.mask.fill_(True)
        for res in self.resources:
            res.freeze(False)
        self._begin_stage()

    def _restore_best(self) -> None:
        assert self._best is not None
        for module, kept in zip(self._modules, self._best["kept"], strict=True):
            weight = masks.parameter_of(module).detach()
            weight[masks.own_mask(module).mask] = kept.to(weight)
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, tensor in self._best["rest"].items():
            if named[name].shape == tensor.shape:
                named[name].detach().copy_(tensor)

    def _levels(self) -> list[float]:
        """What each resource has to come down to in this stage."""
        number = min(self._stage, len(self.schedule.stages) - 1)
        if number == len(self.schedule.stages) - 1:
            return list(self.budgets)
        level, first = self.schedule.stages[number].level, self.budgets[0]
        power = math.log(level) / math.log(first)
        return [level, *(budget**power for budget in self.budgets[1:])]

    # ---- resources ----------------------------------------------------------------------------

    @property
    def _pruned_infos(self) -> list[LayerInfo]:
        return [self._infos[i] for i in self._where]

    def _kept(self, cut: Sequence[int] | None = None) -> list[int]:
        kept = [info.weights for info in self._infos]
        for i, number, weights in zip(
            self._where, self._cut if cut is None else cut, self.units.weights, strict=True
        ):
            kept[i] -= number * weights
        return kept

    def _require_measured(self) -> None:
        for res in self.resources:
            if not res.ready:
                raise RuntimeError(
                    f"resource {res.name!r} is measured in training forwards and none was seen: "
                    "run the model in training mode after the pruner is built"
                )

    def _resource_values(self, cut: Sequence[int]) -> list[float]:
        self._require_measured()
        kept = self._kept(cut)
        return [res(kept) for res in self.resources]

    def _met(self, cut: Sequence[int], levels: Sequence[float]) -> bool:
        values = self._resource_values(cut)
        return all(value <= level for value, level in zip(values, levels, strict=True))

    def _smallest_cut(self, layers: list[int], levels: Sequence[float]) -> int:
        """The smallest number of units of ``layers`` to cut, so that the levels are met."""
        params_only = len(self.resources) == 1 and self.resources[0].name == "params"
        if params_only and self.granularity == "weight":
            total = sum(info.weights for info in self._infos)
            need = total - int(levels[0] * total)
            while need > 0 and (total - need + 1) / total <= levels[0]:
                need -= 1
            while (total - need) / total > levels[0]:
                need += 1
            return need
        return smallest_count(
            self.units.magnitudes(layers), lambda counts: self._met(counts, levels)
        )[0]

    def _uniform(self, base: Sequence[float], levels: Sequence[float]) -> list[int]:
        """Cut the same further share of what is left of every layer, until the levels are met.

        The numbers are whole, and no layer could be cut by one less.
        """
        most = self.units.most

        def at(share: float) -> list[int]:
            return [min(m, math.ceil(b + share * (m - b))) for b, m in zip(base, most, strict=True)]

        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self._met(at(middle), levels) else (middle, high)
        return self._trim(at(high), levels)

    def _trim(self, cut: list[int], levels: Sequence[float]) -> list[int]:
        """Give back single units, layer by layer, while the levels stay met."""
        cut, gave = list(cut), True
        while gave:
            gave = False
            for i in range(len(cut)):
                if cut[i] > 0:
                    cut[i] -= 1
                    if self._met(cut, levels):
                        gave = True
                    else:
                        cut[i] += 1
        return cut

    # ---- checks -------------------------------------------------------------------------------

    def _check_floor(self, res: Resource) -> None:
        budget = self.budgets[self.resources.index(res)]
        floor = res(self._kept(self.units.most))
        if floor > budget:
            dense = [info.name for info in self._infos if not info.pruned]
            raise ValueError(
                f"budget {budget} of resource {res.name!r} cannot be met: the layers that are left "
                f"dense ({', '.join(dense) or 'none'}) cost {floor:.6g} of the dense network"
                + (" together with one channel per layer" if self.granularity == "channel" else "")
                + "; raise the budget or prune more layers (first=True prunes the first)"
            )

    def _check_weights(self) -> None:
        for info, module in zip(self._pruned_infos, self._modules, strict=True):
            # a sum is finite unless an element is not (or all are beyond any training)
            if not torch.isfinite(masks.parameter_of(module).detach().sum()):
                raise ValueError(self._not_finite([info.name]))

    def _explain(self, error: ValueError) -> None:
        if isinstance(error, NotFinite):
            names = [self._pruned_infos[i].name for i in error.tensors]
            error.args = (self._not_finite(names),)

    @staticmethod
    def _not_finite(names: Sequence[str]) -> str:
        return (
            f"weights of {', '.join(names)} are NaN or infinite: the optimizer stepped on NaN or "
            "infinite gradients, or the learning rate is too high"
        )

    def _check_masks(self) -> None:
        self._verify_masks = False
        for info, module, cut, weights in zip(
            self._pruned_infos, self._modules, self._cut, self.units.weights, strict=True
        ):
            mask = masks.own_mask(module)
            zeros = mask.mask.numel() - int(mask.mask.count_nonzero())
            want = cut * weights if self._closed else 0
            if mask.closed != self._closed or zeros != want:
                raise RuntimeError(
                    f"the mask of layer {info.name!r} does not belong to the pruner's state: it "
                    f"is {'closed' if mask.closed else 'open'} with {zeros} zeros, the state has "
                    f"{'closed' if self._closed else 'open'} with {want}; load the model's "
                    "state_dict of the same moment too"
                )

    # ---- when a step counts -------------------------------------------------------------------

    def _after_optimizer(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # fused optimizers are called even if AMP found infinities, and skip the update themselves
        found = getattr(optimizer, "found_inf", None)
        if found is None or not bool(found):
            self._stepped = True

    def _remember_versions(self) -> None:
        self._stepped = False
        self._versions = [masks.parameter_of(module)._version for module in self._modules]

    def _optimizer_stepped(self) -> bool:
        if self.optimizer is not None:
            return self._stepped
        now = [masks.parameter_of(module)._version for module in self._modules]
        return now != self._versions

    # ---- report and checkpoints ---------------------------------------------------------------

    def _record(self) -> None:
        row = {
            "step": self.steps_done,
            "stage": self._stage,
            "phase": self.phase,
            "density": self.density,
            **{
                f"resource/{res.name}": value
                for res, value in zip(self.resources, self._resource_values(self._cut), strict=True)
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
                info.name: list(masks.parameter_of(module).shape)
                for info, module in zip(self._pruned_infos, self._modules, strict=True)
            },
            "pruner": type(self).__name__,
            "granularity": self.granularity,
            "budgets": {
                res.name: budget for res, budget in zip(self.resources, self.budgets, strict=True)
            },
            "schedule": [
                [stage.level, stage.compress_steps, stage.finetune_steps]
                for stage in self.schedule.stages
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the pruner needs to go on to the bit.

        Masks and weights are in ``model.state_dict()`` of the same moment.
        """
        return {
            "format": FORMAT,
            "identity": self._identity(),
            "steps_done": self.steps_done,
            "stage": self._stage,
            "stage_step": self._stage_step,
            "closed": self._closed,
            "cut": list(self._cut),
            "resources": [res.state_dict() for res in self.resources],
            "best": copy.deepcopy(self._best),
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
        mine, other = self._identity(), state["identity"]
        for key, value in mine.items():
            if other[key] != value:
                what = "another network" if key == "layers" else f"another {key}"
                raise ValueError(
                    f"the checkpoint is of {what}: it has {_difference(other[key], value)}"
                )
        self.steps_done = state["steps_done"]
        self._stage, self._stage_step = state["stage"], state["stage_step"]
        self._closed = state["closed"]
        self._cut = list(state["cut"])
        for res, saved in zip(self.resources, state["resources"], strict=True):
            res.load_state_dict(saved)
            res.freeze(self._closed)
            if self.finished:
                res.close()
        self._floors_checked = self._floors_checked or self.steps_done > 0
        self._best = copy.deepcopy(state["best"])
        self.history.load_state_dict(state["history"])
        self._load_method_state(state["method"])
        self._verify_masks = True
        self._remember_versions()

    def _method_state(self) -> dict[str, Any]:
        return {}

    def _load_method_state(self, state: Mapping[str, Any]) -> None:
        pass


def _difference(there: Any, here: Any) -> str:
    """The first difference, in words: what the checkpoint has and what is here."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *here]:
            if there.get(key) != here.get(key):
                return (
                    f"{key!r}: {there.get(key, 'nothing')} where this pruner has "
                    f"{here.get(key, 'nothing')}"
                )
        return f"the order {list(there)} where this pruner has {list(here)}"
    return f"{there!r} where this pruner has {here!r}"


def _budgets(
    budget: Any, resource: Any, example_input: torch.Tensor | None, latency_table: Any
) -> tuple[list[float], list[Resource]]:
    if isinstance(budget, Mapping):
        resource, budget = list(budget), list(budget.values())
    resources = [resource] if isinstance(resource, (str, Resource)) else list(resource)
    budgets = [budget] if isinstance(budget, (int, float)) else list(budget)
    if len(resources) != len(budgets) or not budgets:
        raise ValueError(
            f"budget must have one number per resource, got {len(budgets)} for {len(resources)}"
        )
    for value in budgets:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"budget must be a number in (0, 1], got {value!r}")
        if not 0 < value <= 1:
            raise ValueError(f"budget must be in (0, 1], got {value!r}")
    made = [
        resource_by_name(which, example_input=example_input, latency_table=latency_table)
        for which in resources
    ]
    names = [res.name for res in made]
    if len(set(names)) != len(names):
        raise ValueError(f"resources must have different names, got {names}")
    return [float(value) for value in budgets], made


def _schedule(schedule: Schedule | int | None, budget: float) -> Schedule:
    if schedule is None:
        return Schedule.geometric(budget)
    if isinstance(schedule, int) and not isinstance(schedule, bool):
        return Schedule.geometric(budget, schedule)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule, a number of steps or None, got {schedule!r}")
    if schedule.stages[-1].level != budget:
        raise ValueError(
            f"the last level of schedule must be the (first) budget {budget}, "
            f"got {schedule.stages[-1].level}"
        )
    return schedule


def ranking(units: Weights, layers: list[int], first: int, last: int) -> Ranking:
    """The units of ``layers`` from rank ``first`` to ``last``."""
    try:
        return Ranking(units.magnitudes(layers), first, last)
    except NotFinite as error:
        error.tensors = [layers[i] for i in error.tensors]
        raise
