"""Pruning to a budget by minimax optimisation, its baselines, resources and exports."""

from typing import TYPE_CHECKING

from ..late import late

if TYPE_CHECKING:
    from .public import *
else:
    __getattr__, __dir__ = late(__name__)
