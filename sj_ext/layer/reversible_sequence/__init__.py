"""Two-stream blocks whose inputs come back from their outputs."""

from .sequence import ReversibleSequence

__all__ = ["ReversibleSequence"]
