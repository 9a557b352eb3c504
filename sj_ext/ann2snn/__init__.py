"""From a trained network to spikes: eleven published methods as parts of one recipe.

>>> snn = ann2snn.convert(net, ann2snn.presets.optimal_potential(images))      # doctest: +SKIP
>>> ann2snn.evaluate(snn, test_loader, T=(4, 8, 16))                           # doctest: +SKIP
"""

from __future__ import annotations

import sys

from . import activation, calibrate, neuron, presets, threshold
from .activation import QuantizedClip
from .fold import fold_scales
from .neuron import ConversionIFNode
from .recipe import ComposedRecipe, convert
from .refine import refine
from .replace import Replacements, replace_activations
from .report import LayerReport, Report, evaluate, report
from .site import CountMaxPool, Scaler, SpikingSite
from .tandem import progressive_tandem
from .two_spike import TwoSpikeNode, latency

__all__ = [
    "ComposedRecipe",
    "ConversionIFNode",
    "CountMaxPool",
    "LayerReport",
    "QuantizedClip",
    "Replacements",
    "Report",
    "Scaler",
    "SpikingSite",
    "TwoSpikeNode",
    "activation",
    "calibrate",
    "convert",
    "evaluate",
    "fold_scales",
    "latency",
    "neuron",
    "presets",
    "progressive_tandem",
    "refine",
    "replace_activations",
    "report",
    "threshold",
]

if "sj_ext.registration" in sys.modules:  # imported before the host's module of this name
    sys.modules["sj_ext.registration"].register()
