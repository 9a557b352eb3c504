"""Functions without state: losses and neuron steps."""
