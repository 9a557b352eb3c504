"""Training existing networks with little memory, and the same gradients."""

from .compact import compact
from .report import Compaction, SegmentRow

__all__ = ["Compaction", "SegmentRow", "compact"]
