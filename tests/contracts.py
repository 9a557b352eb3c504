"""How a neuron of the table ``PLUGIN`` is made, run and compared."""

import copy

import torch

from sj_ext import host

functional = host.functional
SHAPE = 4, 3, 5, 2, 6  # T, N, C, H, W


def sequence(shape=SHAPE, dtype=torch.float32):
    return (torch.randn(shape, dtype=dtype) * 1.5 + 0.5).requires_grad_()


def ready(contract, step_mode="m", dtype=torch.float32, shape=SHAPE, **kwargs):
    """A node whose sizes are known, at the start of a sequence."""
    node = contract.make(**kwargs).to(dtype)
    functional.set_step_mode(node, step_mode)
    with torch.no_grad():
        run(node, torch.zeros(1, *shape[1:], dtype=dtype))
    functional.reset_net(node)
    return node


def run(node, x_seq):
    """``[T, N, *]`` to ``[T, N, *]`` in the node's own step mode."""
    if node.step_mode == "m":
        return node(x_seq)
    return torch.stack([node(x) for x in x_seq])


def gradients(node, x_seq, y_seq):
    """Gradients of a sum that weighs every output differently, the input's first."""
    wave = torch.arange(1.0, 1 + y_seq.numel()).sin().to(y_seq).view(y_seq.shape)
    return torch.autograd.grad((y_seq * wave).sum(), [x_seq, *node.parameters()], allow_unused=True)


def assert_same(found, wanted, **tolerance):
    for one, other in zip(found, wanted, strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, **tolerance)


def twin_of(node):
    """A node of the same kind with the same parameters, at the start of a sequence."""
    other = copy.deepcopy(node)
    functional.reset_net(other)
    return other
