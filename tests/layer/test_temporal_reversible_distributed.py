"""DistributedDataParallel: two ranks give the gradient of the whole batch in one process."""

import gloo
import torch
from cells import difference, linear_levels
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_ext.layer import TemporalReversible

NUM_STEPS, BATCH = 5, 4


class Network(nn.Module):
    """A cell between two ordinary layers."""

    def __init__(self, memory):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.cell = TemporalReversible(linear_levels(), [0.5, 0.9, 0.3], memory=memory)
        self.head = nn.Linear(5, 2)

    def forward(self, x_seq):
        y = self.head(self.cell(self.stem(x_seq)).mean(0))
        self.cell.reset()
        return y


def data(seed):
    torch.manual_seed(seed)
    return torch.randn(NUM_STEPS, BATCH, 3)


def train(network, x_seq):
    network(x_seq).square().sum(1).mean().backward()


def one_rank(rank, seed):
    torch.manual_seed(seed)
    network = Network("reversible")
    parallel = DistributedDataParallel(network)
    part = data(seed).chunk(2, dim=1)[rank]
    for _ in range(2):  # a second step, in buckets that DDP has rebuilt by then
        network.zero_grad()
        train(parallel, part)
    return {name: p.grad for name, p in network.named_parameters()}


def test_two_ranks_give_the_gradient_of_the_whole_batch(seed):
    ranks = gloo.run(one_rank, seed)
    torch.manual_seed(seed)
    whole = Network("autograd")
    train(whole, data(seed))
    wanted = {name: p.grad for name, p in whole.named_parameters()}
    for found in ranks:
        assert difference({n: torch.from_numpy(g) for n, g in found.items()}, wanted) < 1e-5
