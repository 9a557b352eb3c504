"""How a space is gone through: at random, by evolution as published, or by Optuna."""

from .evolution import evolution_as_published
from .optuna import optuna_search
from .record import Evaluations, Found
from .uniform import random_search

__all__ = ["Evaluations", "Found", "evolution_as_published", "optuna_search", "random_search"]
