"""Token mixers that take an attention's place: one idea a file."""

from .frequency import FrequencyMixer
from .linear import LinearMixer

__all__ = ["FrequencyMixer", "LinearMixer"]
