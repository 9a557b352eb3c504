"""Pruning by magnitude, for comparison, behind the same interface.

=========================  ========================================================================
pruner                     what it does
=========================  ========================================================================
GlobalMagnitudePruner      cuts the smallest weights of the whole network once, then fine-tunes
LayerMagnitudePruner       cuts the same share of every layer once, then fine-tunes
IterativeMagnitudePruner   cuts the smallest weights of the network at each level of a schedule and
                           fine-tunes in between
compress_then_finetune     the minimax method in one go, then fine-tuning with fixed masks
=========================  ========================================================================
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .. import checks
from .minimax import MinimaxPruner
from .pruner import Pruner
from .schedule import Schedule, Stage
from .selection import Cut, Ranking

__all__ = [
    "GlobalMagnitudePruner",
    "IterativeMagnitudePruner",
    "LayerMagnitudePruner",
    "compress_then_finetune",
]


class _Magnitude(Pruner):
    def _compress(self) -> list[tuple[list[int], Cut]]:
        pools = list(range(len(self.units.sizes)))
        count = self._account.smallest_cut(pools, self._stages.levels())
        order = Ranking(self.units.magnitudes(pools), count, count)
        self._account.cut = order.counts(count)
        place = order.cut(count)
        self.units.zero(pools, place)
        return [(pools, place)]


class _Once(Pruner):
    """One cut in the first step; all other steps fine-tune."""

    def _make_schedule(self, schedule: Schedule | int | None) -> Schedule:
        steps = 1000 if schedule is None else schedule
        if isinstance(steps, Schedule):
            return super()._make_schedule(steps)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"schedule must be a Schedule or a number of steps, got {schedule!r}")
        return Schedule((Stage(self._targets[0].share, 1, steps - 1),))


class GlobalMagnitudePruner(_Once, _Magnitude):
    """Cuts the smallest weights of all layers together in the first step, then fine-tunes.

    Args:
        model, budget, options: as :class:`~sj_ext.pruning.Pruner`.
        schedule: a number of steps (the cut is in the first), or a Schedule.

    Raises:
        TypeError, ValueError: as :class:`~sj_ext.pruning.Pruner`.
    """


class LayerMagnitudePruner(_Once):
    """Cuts the same share of every layer, each layer's smallest weights, in the first step.

    Args:
        model, budget, options: as :class:`~sj_ext.pruning.Pruner`.
        schedule: a number of steps (the cut is in the first), or a Schedule.

    Raises:
        TypeError, ValueError: as :class:`~sj_ext.pruning.Pruner`.
    """

    def _compress(self) -> list[tuple[list[int], Cut]]:
        counts = self._account.uniform([0] * len(self.units.sizes), self._stages.levels())
        cuts = []
        for i, count in enumerate(counts):
            place = Ranking(self.units.magnitudes([i]), count, count).cut(count)
            self.units.zero([i], place)
            cuts.append(([i], place))
        self._account.cut = counts
        return cuts


class IterativeMagnitudePruner(_Magnitude):
    """Cuts the smallest weights of all layers at each level of the schedule, and fine-tunes.

    Weights that a stage cut can come back only through their gradient in the first step of the
    next.

    Args:
        model, options: as :class:`~sj_ext.pruning.Pruner`.

    Raises:
        TypeError, ValueError: as :class:`~sj_ext.pruning.Pruner`.
    """


def compress_then_finetune(
    model: nn.Module, *, budget: float, compress_steps: int, finetune_steps: int, **options: Any
) -> MinimaxPruner:
    """The minimax method as one compression followed by one fine-tuning.

    Args:
        model, budget, options: as :class:`~sj_ext.pruning.MinimaxPruner`.
        compress_steps: steps of compression.
        finetune_steps: steps with fixed masks.

    Raises:
        TypeError, ValueError: as :class:`~sj_ext.pruning.MinimaxPruner`; or ``compress_steps`` is
            below 1, or ``finetune_steps`` negative.
    """
    checks.number("budget", budget, above=0, at_most=1)
    schedule = Schedule.one_go(budget, compress_steps, finetune_steps)
    return MinimaxPruner(model, budget=budget, schedule=schedule, **options)
