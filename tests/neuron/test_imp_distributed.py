"""IMP nodes under DistributedDataParallel: two ranks give the gradient of the whole batch."""

import gloo
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_ext import host
from sj_ext.neuron import IMPLIFNode


def network(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(6, 5), IMPLIFNode(step_mode="m"), nn.Linear(5, 3), IMPLIFNode(step_mode="m")
    )
    net(torch.zeros(1, 2, 6))  # lazy sizes, as PyTorch asks for before DDP
    host.functional.reset_net(net)
    return net


def inputs(seed):
    torch.manual_seed(seed + 1)
    return torch.randn(4, 8, 6) * 2, torch.randn(4, 8, 3)


def train_two_steps(rank, seed):
    net = DistributedDataParallel(network(seed))
    x, weights = (t.chunk(2, dim=1)[rank] for t in inputs(seed))
    for _ in range(2):  # the second time after a reset, so that theta takes part again
        net.zero_grad()
        host.functional.reset_net(net)
        (net(x) * weights).sum(0).mean().backward()
    return {name: p.grad for name, p in net.module.named_parameters()}


def test_two_ranks_give_the_gradient_of_the_whole_batch(seed):
    ranks = gloo.run(train_two_steps, seed)
    net = network(seed)
    x, weights = inputs(seed)
    (net(x) * weights).sum(0).mean().backward()
    for name, p in net.named_parameters():
        assert p.grad.abs().sum() > 0
        for grads in ranks:
            torch.testing.assert_close(torch.from_numpy(grads[name]), p.grad, rtol=1e-4, atol=1e-6)
