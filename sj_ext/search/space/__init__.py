"""Spaces of architectures: the published ones, and the class to write one's own with."""

from .autosnn import autosnn
from .autost import autost
from .branchless import branchless
from .snasnet import snasnet
from .space import Architecture, Choice, Space

__all__ = ["Architecture", "Choice", "Space", "autosnn", "autost", "branchless", "snasnet"]
