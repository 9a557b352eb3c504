"""Functions without state: losses and neuron steps."""

from .loss import (
    lts_cross_entropy,
    sdt_cross_entropy,
    tet_cross_entropy,
    tet_s_cross_entropy,
)
from .multi_level import multi_level_firing_step

__all__ = [
    "lts_cross_entropy",
    "multi_level_firing_step",
    "sdt_cross_entropy",
    "tet_cross_entropy",
    "tet_s_cross_entropy",
]
