"""How a space is gone through: at random, by evolution as published, or by Optuna."""

from .evolution import crossed, evolution_as_published, fittest, mutated
from .optuna import optuna_search
from .record import Evaluations, Found
from .uniform import random_search

__all__ = [
    "Evaluations",
    "Found",
    "crossed",
    "evolution_as_published",
    "fittest",
    "mutated",
    "optuna_search",
    "random_search",
]
