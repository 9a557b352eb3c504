"""Calibrations: corrections of a converted network against the trained one.

:mod:`.corrections` has those that compute a correction, :mod:`.train` those that train weights.
"""

from __future__ import annotations

from .corrections import Bias, Calibration, Potential, RateGain
from .train import ProxyFineTuning, Weights

__all__ = ["Bias", "Calibration", "Potential", "ProxyFineTuning", "RateGain", "Weights"]
