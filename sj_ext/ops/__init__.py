"""Operators, a folder or module each: bits, windows, the turn-on neuron; cuda launches kernels."""
