"""Architecture search for spiking networks, in parts that know nothing of each other.

A :class:`Space` says what may be built; a network in :mod:`sj_ext.search.network` or a function of
your own builds it; a score, a supernet's accuracy and a cost say what it is worth; a strategy goes
through the space.
"""

from typing import TYPE_CHECKING

from ..late import late

if TYPE_CHECKING:
    from .public import *
else:
    __getattr__, __dir__ = late(__name__)
