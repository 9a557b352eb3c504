"""The networks that the published spaces describe."""

from . import autosnn, autost, branchless, snasnet

__all__ = ["autosnn", "autost", "branchless", "snasnet"]
