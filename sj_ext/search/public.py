"""The public names of :mod:`sj_ext.search`."""

from . import cost, network, score, space
from .objective import Constraint, spike_aware
from .space import Architecture, Choice, Space, autosnn, autost, branchless, snasnet
from .strategy import (
    Evaluations,
    Found,
    evolution_as_published,
    fittest,
    optuna_search,
    random_search,
)
from .superkernel import SuperKernel
from .supernet import OneShot, Slot

__all__ = [
    "Architecture",
    "Choice",
    "Constraint",
    "Evaluations",
    "Found",
    "OneShot",
    "Slot",
    "Space",
    "SuperKernel",
    "autosnn",
    "autost",
    "branchless",
    "cost",
    "evolution_as_published",
    "fittest",
    "network",
    "optuna_search",
    "random_search",
    "score",
    "snasnet",
    "space",
    "spike_aware",
]
