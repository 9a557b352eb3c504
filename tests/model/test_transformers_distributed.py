"""Spiking transformers in two processes: both have the gradient of the whole batch."""

import gloo
import torch
from small_transformers import MODELS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_ext.layer import DSSA

#: one of each way to attend
NAMES = ("spikingformer", "meta_spikeformer", "spiking_resformer", "spikeformer")


def network(name, seed):
    """One that trains with the statistics that it has, which are those of no batch."""
    torch.manual_seed(seed)
    net = MODELS[name].net()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, DSSA)):
            module.training = False
    return net, MODELS[name].input(n=4)


def gradients(net, x):
    net(x).square().sum((0, 2)).mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def on_a_rank(rank, seed):
    found = {}
    for name in NAMES:
        net, x = network(name, seed)
        found[name] = {
            key.removeprefix("module."): grad
            for key, grad in gradients(DistributedDataParallel(net), x.chunk(2)[rank]).items()
        }
    return found


def test_two_ranks_give_the_gradient_of_the_whole_batch(seed):
    ranks = gloo.run(on_a_rank, seed)
    for name in NAMES:
        whole = gradients(*network(name, seed))
        assert whole
        for key, grad in whole.items():
            for found in ranks:
                torch.testing.assert_close(
                    torch.from_numpy(found[name][key]),
                    grad,
                    rtol=1e-3,
                    atol=1e-5,
                    msg=lambda m, n=name, k=key: f"{n} {k}: {m}",
                )
