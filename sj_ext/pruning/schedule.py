"""When to compress, how far, and when to fine-tune in between."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .. import checks
from ..arguments import checked

__all__ = ["Schedule", "Stage"]


@dataclass(frozen=True)
class Stage:
    """Compress until the resource is at ``level``, then fine-tune with fixed masks.

    Attributes:
        level: the resource at the end of compression, in (0, 1]; 1 is the dense network.
        compress_steps: optimizer steps in which to get there. What is left over when the level is
            reached earlier is spent on fine-tuning.
        finetune_steps: optimizer steps of fine-tuning.

    Raises:
        TypeError: a value that is no number, or steps that are no integer.
        ValueError: a number outside its range.
    """

    level: float
    compress_steps: int
    finetune_steps: int

    def __post_init__(self) -> None:
        checks.number("level", self.level, above=0, at_most=1)
        checks.integer("compress_steps", self.compress_steps, at_least=1)
        checks.integer("finetune_steps", self.finetune_steps, at_least=0)


@checked
@dataclass(frozen=True)
class Schedule:
    """Stages of compression and fine-tuning; the last level is the budget.

    With several budgets, levels are those of the first, and a level ``budget ** q`` stands for the
    same power ``q`` of every other budget.

    Attributes:
        stages: at least one, with falling levels.

    Raises:
        ValueError: there is no stage, or the levels do not fall.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("stages must hold at least one stage, got none")
        levels = [stage.level for stage in self.stages]
        if any(low >= high for high, low in itertools.pairwise(levels)):
            raise ValueError(f"levels of the stages must fall, got {levels}")

    @property
    def steps(self) -> int:
        """Optimizer steps from the first stage to the end of the last."""
        return sum(stage.compress_steps + stage.finetune_steps for stage in self.stages)

    def at(self, levels: Iterable[float]) -> Schedule:
        """The same steps with other levels."""
        pairs = zip(self.stages, levels, strict=True)
        return Schedule(tuple(replace(stage, level=level) for stage, level in pairs))

    @classmethod
    def geometric(
        cls,
        budget: float,
        steps: int = 1000,
        *,
        levels: Iterable[float] | None = None,
        ratio: float = 4.0,
        finetune: float = 0.3,
        final: float = 0.6,
    ) -> Schedule:
        """Stages that each divide the resource by about the same ratio.

        The last fine-tuning is the longest: what is trained at a level above the budget helps less
        than what is trained at the budget.

        Args:
            budget: the last level.
            steps: optimizer steps in all, at least 1 per level.
            levels: the levels before the last; None takes as many as bring each stage's ratio to
                ``ratio`` at most (fewer where there are too few steps).
            ratio: largest ratio of two levels in a row, above 1.
            finetune: share of each stage but the last that fine-tunes, in [0, 1).
            final: share of all steps that the last fine-tuning takes, in [0, 1). The rest is shared
                evenly by the stages.

        Raises:
            TypeError: an argument that is no number.
            ValueError: an argument outside its range.
        """
        checks.number("budget", budget, above=0, at_most=1)
        checks.integer("steps", steps)
        checks.number("ratio", ratio, above=1)
        checks.number("finetune", finetune, at_least=0, below=1)
        checks.number("final", final, at_least=0, below=1)
        if levels is None:
            number = max(1, math.ceil(math.log(1 / budget) / math.log(ratio) - 1e-9))
            number = max(1, min(number, steps // 4))
            levels = [budget ** (i / number) for i in range(1, number)]
        levels = [*levels, budget]
        if steps < len(levels):
            raise ValueError(f"steps must be at least {len(levels)}, got {steps!r}")
        last = min(int(steps * final), steps - len(levels))
        rest, number = steps - last, len(levels)
        stages = []
        for i, level in enumerate(levels):
            length = rest * (i + 1) // number - rest * i // number
            tuned = int(length * finetune) if i < number - 1 else 0
            stages.append(Stage(level, length - tuned, tuned if i < number - 1 else last))
        return cls(tuple(stages))

    @classmethod
    def one_go(cls, budget: float, compress_steps: int, finetune_steps: int) -> Schedule:
        """One compression down to the budget, then fine-tuning."""
        return cls((Stage(budget, compress_steps, finetune_steps),))
