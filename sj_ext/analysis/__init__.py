"""Measurements: firing patterns, accuracy per step, gradients and memory."""

from .memory import ActivationMemory, activation_memory, plot_activation_memory

__all__ = ["ActivationMemory", "activation_memory", "plot_activation_memory"]
