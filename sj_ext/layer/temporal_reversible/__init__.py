"""Levels of leaky integrators with feedback, trained with memory that is flat in time."""

from .cell import TemporalReversible

__all__ = ["TemporalReversible"]
