"""Measurements: firing patterns, accuracy per step, gradients and memory."""
