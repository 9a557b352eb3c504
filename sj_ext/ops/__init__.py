"""Operators: bit packing and the turn-on neuron's sequence, a folder or module each."""
