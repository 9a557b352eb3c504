"""Search by Optuna's samplers, with its storage and its way to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ... import checks
from ...arguments import checked
from ..objective import Constraint
from ..space import Architecture, Space

__all__ = ["optuna_search"]


@checked
def optuna_search(
    space: Space,
    evaluate: Callable[[Architecture], float | Sequence[float]],
    *,
    trials: int,
    seed: int,
    directions: Sequence[str] = ("maximize",),
    constraints: Sequence[Constraint] = (),
    sampler: Any = None,
    storage: str | None = None,
    study_name: str | None = None,
) -> Any:
    """Let Optuna ask for architectures, one categorical choice per slot.

    An architecture that Optuna asks for again is told its value from before. One outside of the
    space, where slots depend on each other, or above a constraint's limit is never evaluated.

    Args:
        space: what to search.
        evaluate: the value of an architecture, or one value per direction.
        trials: how many trials the study has in the end, those of an earlier run in its storage
            included.
        seed: of the sampler.
        directions: ``'maximize'`` or ``'minimize'`` for each value; with several, the study's
            ``best_trials`` are the front.
        constraints: what an architecture must keep to.
        sampler: an Optuna sampler, in place of NSGA-II with a population of 20.
        storage: Optuna's address of a data base that keeps the study.
        study_name: of the study in it; one that is there is gone on with.

    Returns:
        The ``optuna.Study``; every trial that was evaluated has the user attribute ``architecture``
        in JSON.

    Raises:
        RuntimeError: Optuna is not installed.
        ValueError: ``trials`` is below 1, a direction is unknown, or the study in the storage is of
            another space.
    """
    optuna = _optuna()
    trials = checks.integer("trials", trials, at_least=1)
    for direction in directions:
        checks.choice("directions", direction, ("maximize", "minimize"))
    if sampler is None:
        sampler = optuna.samplers.NSGAIISampler(
            population_size=20, seed=checks.integer("seed", seed)
        )
    study = optuna.create_study(
        directions=list(directions),
        sampler=sampler,
        storage=storage,
        study_name=study_name,
        load_if_exists=True,
    )
    if study.user_attrs.setdefault("space", space.name) != space.name:
        raise ValueError(
            f"study_name: {study_name!r} is of the space {study.user_attrs['space']!r}, not "
            f"{space.name!r}"
        )
    study.set_user_attr("space", space.name)
    known = _known(study, space)
    for _ in range(trials - len(study.get_trials(deepcopy=False))):
        trial = study.ask()
        architecture = _asked(space, trial)
        if architecture is None or any(c.excess(architecture) > 0 for c in constraints):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        if architecture not in known:
            known[architecture] = evaluate(architecture)
        trial.set_user_attr("architecture", architecture.to_json())
        study.tell(trial, known[architecture])
    return study


def _asked(space: Space, trial: Any) -> Architecture | None:
    """The architecture that a trial stands for; None where the space has no such one."""
    slots = space.slots.items()
    genes = [trial.suggest_categorical(slot, choice.options) for slot, choice in slots]
    try:
        return space.architecture(*genes)
    except ValueError:
        return None


def _known(study: Any, space: Space) -> dict[Architecture, float | Sequence[float]]:
    """What the study evaluated before."""
    told = study.get_trials(deepcopy=False)
    told = [t for t in told if t.values and "architecture" in t.user_attrs]
    return {space.from_json(t.user_attrs["architecture"]): t.values for t in told}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RuntimeError(
            "optuna_search needs Optuna, which is not installed: install sj_ext[search]"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
