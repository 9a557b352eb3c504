"""From a trained network to spikes: eleven published methods as parts of one recipe.

>>> snn = ann2snn.convert(net, ann2snn.presets.optimal_potential(images))      # doctest: +SKIP
>>> ann2snn.evaluate(snn, test_loader, T=(4, 8, 16))                           # doctest: +SKIP
"""

from __future__ import annotations

from . import activation, calibrate, neuron, presets, threshold, train
from .activation import QuantizedClip
from .neuron import ConversionIFNode
from .recipe import ComposedRecipe, convert
from .refine import refine
from .replace import Replacements, replace_activations
from .report import LayerReport, Report, evaluate, report

__all__ = [
    "ComposedRecipe",
    "ConversionIFNode",
    "LayerReport",
    "QuantizedClip",
    "Replacements",
    "Report",
    "activation",
    "calibrate",
    "convert",
    "evaluate",
    "neuron",
    "presets",
    "refine",
    "replace_activations",
    "report",
    "threshold",
    "train",
]
