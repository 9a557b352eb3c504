"""Functions without state: losses and neuron steps."""

from .multi_level import multi_level_firing_step

__all__ = ["multi_level_firing_step"]
