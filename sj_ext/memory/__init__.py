"""Training existing networks with little memory, and the same gradients."""

from typing import TYPE_CHECKING

from ..late import late

if TYPE_CHECKING:
    from .public import *
else:
    __getattr__, __dir__ = late(__name__)
