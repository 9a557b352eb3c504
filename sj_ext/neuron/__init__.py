"""Neurons: learnable initial potential, turn-off, turn-on and multi-level firing."""
