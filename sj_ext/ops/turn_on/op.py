"""The turn-on neuron's CUDA kernel as an operator."""

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def turn_on(*inputs, **arguments):
    """Not there yet."""
    raise RuntimeError("the turn-on neuron's CUDA kernel is not part of this version")
