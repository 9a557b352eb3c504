"""When: the stage that a pruner is in, and what each resource has to come down to in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .budgets import Target
from .schedule import Schedule, Stage

__all__ = ["Stages"]


class Stages:
    """The place in a schedule: which stage, how many of its steps, and are its masks closed.

    Args:
        schedule: the stages.
        targets: one budget per resource; the first is the schedule's last level.
    """

    def __init__(self, schedule: Schedule, targets: Sequence[Target]):
        self.schedule = schedule
        self.targets = list(targets)
        #: the stage that is running, counted from 0; their number when all are over
        self.number = 0
        #: steps of the stage that have been taken
        self.step = 0
        #: the level is met and the masks are fixed
        self.closed = False

    @property
    def current(self) -> Stage:
        """The stage that is running."""
        return self.schedule.stages[self.number]

    @property
    def finished(self) -> bool:
        """The last stage is over."""
        return self.number == len(self.schedule.stages)

    @property
    def phase(self) -> str:
        """``'compress'``, ``'finetune'`` or ``'finished'``."""
        return "finished" if self.finished else "finetune" if self.closed else "compress"

    @property
    def pace(self) -> float:
        """How much of the way to its level the stage must have behind it; 1 on its last step."""
        return min(1.0, self.step / self.current.compress_steps)

    @property
    def over(self) -> bool:
        """All steps of the stage have been taken."""
        return self.step >= self.current.compress_steps + self.current.finetune_steps

    def levels(self) -> list[float]:
        """What each resource has to come down to in this stage."""
        budgets = [target.share for target in self.targets]
        last = self.schedule.stages[-1].level
        if self.number >= len(self.schedule.stages) - 1 or last == 1:
            return budgets
        level = self.current.level
        power = math.log(level) / math.log(last)
        return [level, *(budget**power for budget in budgets[1:])]

    def go_on(self) -> None:
        """Enter the next stage, with masks open unless there is none."""
        self.number += 1
        if not self.finished:
            self.step, self.closed = 0, False

    def state_dict(self) -> dict[str, Any]:
        """The place, in plain numbers."""
        return {"stage": self.number, "stage_step": self.step, "closed": self.closed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.number, self.step = state["stage"], state["stage_step"]
        self.closed = state["closed"]
