"""The public names of :mod:`sj_ext.analysis`."""

from .accuracy import per_step_accuracy, plot_per_step_accuracy
from .energy import LayerOperations, SynapticOperations, synaptic_operations
from .gradient import gradient_similarity
from .inputs import LayerInput, layer_inputs
from .memory import ActivationMemory, activation_memory, plot_activation_memory
from .patterns import (
    firing_patterns,
    pattern_mapping,
    plot_firing_patterns,
    plot_pattern_mapping,
)

__all__ = [
    "ActivationMemory",
    "LayerInput",
    "LayerOperations",
    "SynapticOperations",
    "activation_memory",
    "firing_patterns",
    "gradient_similarity",
    "layer_inputs",
    "pattern_mapping",
    "per_step_accuracy",
    "plot_activation_memory",
    "plot_firing_patterns",
    "plot_pattern_mapping",
    "plot_per_step_accuracy",
    "synaptic_operations",
]
