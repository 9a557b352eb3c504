"""The turn-on neuron over a whole sequence."""
