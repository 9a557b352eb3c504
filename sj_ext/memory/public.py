"""The public names of :mod:`sj_ext.memory`."""

from .compact import compact
from .report import Compaction, SegmentRow

__all__ = ["Compaction", "SegmentRow", "compact"]
