"""Measurements: firing patterns, accuracy per step, gradients and memory."""

from typing import TYPE_CHECKING

from ..late import late

if TYPE_CHECKING:
    from .public import *
else:
    __getattr__, __dir__ = late(__name__)
