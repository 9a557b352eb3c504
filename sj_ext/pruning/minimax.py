r"""Compression to a budget by minimax optimisation.

.. math::
    \min_{W, s} \max_{y, z \ge 0} \; L(W) + y \, |W|^2_{(s)} + \sum_i z_i (R_i(s) - B_i)

with :math:`|W|^2_{(s)}` the sum of the ``s`` smallest squared weights. ``y`` presses these weights
to zero, ``z`` makes ``s`` grow while a budget is overrun.

Everything is in units of the dense network, so that each number is of order one: with ``n`` weights
and their mean square ``m`` when the pruner was built, :math:`\sigma = s / n`,
:math:`\hat w^2 = w^2 / m` and :math:`\hat S = |W|^2_{(s)} / (n m)`. In a stage of compression of
``C`` steps that starts at :math:`R_i^0`,

.. math::
    w &\leftarrow w / (1 + 2 \eta y) \quad \text{for the } \lceil s \rceil \text{ smallest} \\
    \sigma &\leftarrow \sigma + a_s \frac{D}{C} \Big( \sum_i z_i
        \Big|\frac{\partial R_i}{\partial \sigma}\Big| - y \hat w^2_{(\lceil s \rceil + 1)} \Big) \\
    y &\leftarrow \max(0, y + a_y \hat S) \\
    z_i &\leftarrow \max\Big(0, z_i + \frac{a_z}{C} \frac{R_i - B_i}{R_i^0 - B_i}\Big)

where ``D`` is the change of :math:`\sigma` that the stage needs at the slope it starts with and
:math:`\eta` is the layer's learning rate. Then the :math:`\lceil s \rceil` smallest weights are set
to zero. With ``z = 1``, ``y = 0`` and :math:`a_s = 1` the stage takes its ``C`` steps.

Source: "Resource Constrained Model Compression via Minimax Optimization for Spiking Neural
Networks", ACM MM 2023 (arXiv 2308.04672).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import checks
from .budgets import Budget, Resources
from .counting import identity
from .importance import Magnitude
from .layers import Chooser
from .pruner import Pruner
from .resources.base import Params
from .schedule import Schedule
from .selection import Cut, Ranking

__all__ = ["MinimaxPruner", "Rates"]


class Rates(NamedTuple):
    """Learning rates of order one."""

    #: of the number of zeros, a_s
    s: float = 2.0
    #: of the multiplier of the zeros, a_y
    y: float = 0.25
    #: of the multipliers of the budgets, a_z
    z: float = 1.0


class MinimaxPruner(Pruner):
    r"""Prunes a network to a budget while it trains; exact when it says that it is finished.

    ::

        pruner = MinimaxPruner(model, budget=0.05, schedule=2000)
        for x, target in loader:
            loss = ...
            loss.backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        make_permanent(model)

    In each stage of the schedule the network is compressed to the stage's level, the masks are
    closed, and it is fine-tuned. A stage's level is never overshot: when the resource would pass
    it, exactly as many weights are cut as the level needs. A line from the stage's start to its
    level is the least pace at which ``s`` grows, so that the announced number of steps is kept
    whatever the multipliers do.

    The arguments of :class:`~sj_ext.pruning.Pruner`, and these:

    Args:
        layerwise: one ``s`` and ``y`` per layer instead of one for the whole network.
        rates: :class:`Rates`, all above 0.
        lr: learning rate :math:`\eta` of the proximal step where no optimizer is given.

    Raises:
        TypeError, ValueError: as :class:`~sj_ext.pruning.Pruner`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        budget: Budget,
        resource: Resources = "params",
        schedule: Schedule | int | None = None,
        layers: Chooser | Iterable[Chooser] | None = None,
        layerwise: bool = False,
        rates: Rates | tuple[float, float, float] = Rates(),  # noqa: B008
        lr: float = 0.1,
        **options: Any,
    ):
        self.layerwise = checks.flag("layerwise", layerwise)
        self.rates = Rates(*checks.numbers("rates", rates, above=0))
        self.lr = checks.number("lr", lr, above=0)
        super().__init__(
            model, budget=budget, resource=resource, schedule=schedule, layers=layers, **options
        )
        number = len(self.units.sizes)
        #: pools that share one s: all, or each alone
        self._groups = [[i] for i in range(number)] if layerwise else [list(range(number))]
        self._n = [sum(self.units.sizes[i] for i in g) for g in self._groups]
        # scores of a criterion may need a step of training first
        known = isinstance(self.importance, Magnitude)
        with self._whole():
            self._mean_square = [self._dense_mean_square(g) for g in self._groups] if known else []
        self._s = [0.0] * len(self._groups)
        self._y = [0.0] * len(self._groups)
        self._z = [1.0] * len(self.resources)
        # where the weight after the last cut one was: only a guess for the next selection
        self._guess = [0.0] * len(self._groups)

    # ---- what a user reads --------------------------------------------------------------------

    @property
    def s(self) -> float | list[float]:
        """The number of zeros, real: one, or one per layer."""
        return list(self._s) if self.layerwise else self._s[0]

    @property
    def y(self) -> float | list[float]:
        """The multiplier that presses the smallest weights to zero: one, or one per layer."""
        return list(self._y) if self.layerwise else self._y[0]

    @property
    def z(self) -> dict[str, float]:
        """The multiplier of each budget."""
        return {res.name: z for res, z in zip(self.resources, self._z, strict=True)}

    def _multipliers(self) -> dict[str, float]:
        if self.layerwise:
            y = {f"y/{name}": v for name, v in zip(self._names, self._y, strict=True)}
        else:
            y = {"y/network": self._y[0]}
        return {**y, **{f"z/{name}": value for name, value in self.z.items()}}

    # ---- one step -----------------------------------------------------------------------------

    def _begin_stage(self) -> None:
        super()._begin_stage()
        self._start: dict[str, Any] | None = None

    def _stage_start(self, values: Sequence[float], slopes: Sequence[float]) -> dict[str, Any]:
        """Resources at the start of the stage, and D; known when the resources are measured."""
        levels = self._stages.levels()
        spans = [
            max(0.0, value - level) / max(slope, 1e-12)
            for value, level, slope in zip(values, levels, slopes, strict=True)
        ]
        return {"values": list(values), "span": min(1.0, max(spans))}

    def _slopes(self, group: int | None, count: int) -> list[float]:
        r"""Per resource :math:`|\partial R / \partial \sigma|`; of all layers alike with None.

        A global s cuts what lies under its threshold: R falls by the mean cost of these. A layer's
        own s gives R the layer's slope, in units of the layer's share of all weights.
        """
        account = self._account
        kept = account.kept()
        slopes = []
        for r, res in enumerate(self.resources):
            if group is not None and self.layerwise:
                i = account.where[group]
                share = self._n[group] / sum(self._n)
                slopes.append(res.slope(i, kept[i]) / share)
            elif group is not None and count > 0:
                dense = res([layer.weights for layer in account.layers])
                slopes.append((dense - account.values()[r]) * self._n[group] / count)
            else:
                left = [kept[i] for i in account.where]
                slopes.append(sum(map(res.slope, account.where, left)))
        return slopes

    def _compress(self) -> list[tuple[list[int], Cut]]:
        if not self._mean_square:
            self._mean_square = [self._dense_mean_square(g) for g in self._groups]
        if self._start is None:
            self._start = self._stage_start(self._account.values(), self._slopes(None, 0))
        before = [math.ceil(s) for s in self._s]
        rankings: list[Ranking] = []
        moved: list[float] = []
        for g, pools in enumerate(self._groups):
            slopes, n = self._slopes(g, before[g]), self._n[g]
            order = Ranking(self.units.magnitudes(pools), *self._ranks(g, before[g], slopes))
            magnitude = order.magnitude_at(before[g] + 1) if before[g] < n else math.inf
            self._guess[g] = magnitude**2
            moved.append(self._moved(g, self._guess[g], slopes))
            if not order.knows(math.ceil(moved[g])):
                low, high = sorted((before[g], math.ceil(moved[g])))
                order = Ranking(order.tensors, low, min(n, high))
            rankings.append(order)
        levels, cut = self._stages.levels(), self._counts(rankings, moved)
        if self._account.met(cut, levels):
            moved = self._land(before, moved, levels)
        elif not self._account.met(cut, bounds := self._bounds(levels)):
            moved = self._push(moved, cut, bounds)
        self._s = [float(s) for s in moved]
        after = [math.ceil(s) for s in self._s]
        for g, pools in enumerate(self._groups):
            if not (rankings[g].knows(after[g]) and rankings[g].knows(before[g])):
                low, high = sorted((before[g], after[g]))
                rankings[g] = Ranking(self.units.magnitudes(pools), low, high)
        self._account.cut = self._counts(rankings, self._s)
        cuts = []
        for g, pools in enumerate(self._groups):
            factors = self._factors(g)
            pressed = self._pressed_energy(rankings[g], factors, before[g], after[g])
            place = rankings[g].cut(after[g])
            fewer = after[g] < before[g]
            old = rankings[g].cut(before[g]) if fewer else place
            self.units.zero(pools, place)
            if fewer:  # these come free, and keep what the proximal step left
                self.units.scale(pools, place, old, factors)
            self._y[g] = max(
                0.0, self._y[g] + self.rates.y * pressed / (self._n[g] * self._mean_square[g])
            )
            cuts.append((pools, place))
        self._press_budgets()
        return cuts

    def _press_budgets(self) -> None:
        """The step of the multipliers z."""
        assert self._start is not None  # set when the stage began
        steps = self._stages.current.compress_steps
        values, levels = self._account.values(), self._stages.levels()
        for i, (value, level, start) in enumerate(
            zip(values, levels, self._start["values"], strict=True)
        ):
            if start > level:
                gain = (value - level) / (start - level)
                self._z[i] = max(0.0, self._z[i] + self.rates.z / steps * gain)

    def _ranks(self, g: int, before: int, slopes: Sequence[float]) -> tuple[int, int]:
        """Between which ranks the next s is looked for: around what the last step lets expect."""
        guess = math.ceil(self._moved(g, self._guess[g], slopes))
        slack = abs(guess - before) // 16 + 1
        last = min(self._n[g], max(before + 1, guess + slack))
        return max(0, min(before, guess - slack)), last

    def _moved(self, g: int, next_square: float, slopes: Sequence[float]) -> float:
        """The gradient step on one s, by at most four times the mean step of the stage.

        Args:
            g: the group.
            next_square: of the smallest weight that is kept.
            slopes: of the resources.
        """
        most = float(sum(self.units.most[i] for i in self._groups[g]))
        assert self._start is not None  # set when the stage began
        span, steps = self._start["span"], self._stages.current.compress_steps
        rate, limit = self.rates.s * span / steps, 4 * span / steps
        pull = sum(z * slope for z, slope in zip(self._z, slopes, strict=True))
        change = rate * (pull - self._y[g] * next_square / self._mean_square[g])
        return min(max(self._s[g] + self._n[g] * min(max(change, -limit), limit), 0.0), most)

    def _counts(self, rankings: Sequence[Ranking], s: Sequence[float]) -> list[int]:
        cut = [0] * len(self._account.cut)
        for g, pools in enumerate(self._groups):
            for i, number in zip(pools, rankings[g].counts(math.ceil(s[g])), strict=True):
                cut[i] = number
        return cut

    def _bounds(self, levels: Sequence[float]) -> list[float]:
        """What each resource may be at the schedule's pace: a line from the start to the level."""
        assert self._start is not None  # set when the stage began
        behind = 1 - self._stages.pace
        starts = zip(self._start["values"], levels, strict=True)
        return [min(start, level + behind * (start - level)) for start, level in starts]

    def _land(
        self, before: Sequence[int], moved: Sequence[float], levels: Sequence[float]
    ) -> list[float]:
        """The budgets would be met: cut exactly as much as they need."""
        if not self.layerwise:
            return [self._account.smallest_cut(self._groups[0], levels)]

        def at(share: float) -> list[int]:  # on the way from the old s to the new
            return [
                math.ceil(b + share * (math.ceil(s) - b))
                for b, s in zip(before, moved, strict=True)
            ]

        if self._account.met(at(0.0), levels):  # measured resources can fall by themselves
            return [*map(float, self._account.trim(at(0.0), levels))]
        return [*map(float, self._account.first_met(at, levels))]

    def _push(
        self, moved: Sequence[float], cut: Sequence[int], bounds: Sequence[float]
    ) -> list[float]:
        """The multipliers are too slow for the schedule: cut as much as the pace needs."""
        account = self._account
        if self.layerwise:
            return [*map(float, account.uniform(moved, bounds))]
        if self._stages.pace == 1 or (
            len(self.resources) == 1 and isinstance(self.resources[0], Params)
        ):
            return [max(moved[0], account.smallest_cut(self._groups[0], bounds))]
        # near enough before the last step: along the slope
        values, slopes = account.values(cut), self._slopes(None, 0)
        short = max(
            (value - bound) / max(slope, 1e-12)
            for value, bound, slope in zip(values, bounds, slopes, strict=True)
        )
        count = math.ceil(moved[0]) + math.ceil(short * self._n[0])
        return [min(count, sum(self.units.most))]

    @staticmethod
    def _pressed_energy(order: Ranking, factors: Sequence[float], before: int, after: int) -> float:
        """Squares of the ``after`` smallest, of which ``before`` have had the proximal step."""
        had = min(before, after)
        if len(set(factors)) == 1:
            scaled = factors[0] ** 2 * order.energy(had)
        else:
            parts = order.energies(had)
            scaled = sum(f**2 * part for f, part in zip(factors, parts, strict=True))
        if after <= before:
            return scaled
        return order.energy(after) - (order.energy(before) - scaled)

    def _factors(self, g: int) -> list[float]:
        """1 / (1 + 2 lr y) for each layer of the group."""
        rates = self._counter.rates()
        return [
            1 / (1 + 2 * rates.get(identity(self._layers[i]), self.lr) * self._y[g])
            for i in self._groups[g]
        ]

    def _dense_mean_square(self, pools: list[int]) -> float:
        total = count = 0.0
        for tensor in self.units.magnitudes(pools):
            for part in tensor.split(1 << 16):
                total += float(torch.linalg.vector_norm(part.double())) ** 2
                count += len(part)
        return total / count if total > 0 else 1.0

    # ---- checkpoints --------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "layerwise": self.layerwise, "rates": list(self.rates)}

    def _method_state(self) -> dict[str, Any]:
        return {
            "s": list(self._s),
            "y": list(self._y),
            "z": list(self._z),
            "mean_square": list(self._mean_square),
            "start": self._start,
            "guess": list(self._guess),
        }

    def _load_method_state(self, state: Mapping[str, Any]) -> None:
        self._s, self._y, self._z = list(state["s"]), list(state["y"]), list(state["z"])
        self._mean_square = list(state["mean_square"])
        self._start = None if state["start"] is None else dict(state["start"])
        self._guess = list(state["guess"])
