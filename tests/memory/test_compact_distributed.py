"""Two processes with half a batch each have the gradients of the whole batch, through DDP."""

import numpy
import torch
from compact_nets import ATAN, Membrane, images
from gloo import run
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sj_ext.memory import compact


def network():
    """Group normalisation, so that each sample counts for itself."""
    torch.manual_seed(1)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1),
        layer.GroupNorm(2, 6),
        neuron.LIFNode(detach_reset=True, **ATAN),
        layer.MaxPool2d(2),
        layer.Conv2d(6, 6, 3, bias=False),
        neuron.ParametricLIFNode(**ATAN),
        layer.Flatten(),
        layer.Linear(24, 3),
    )
    functional.set_step_mode(net, "m")
    return net.double()


def batch():
    torch.manual_seed(2)
    return torch.rand(3, 8, 2, 8, 8, dtype=torch.float64)


def gradients(rank, accumulate):
    """Summed over the samples by DDP, which averages over two ranks."""
    x = batch().chunk(2, 1)[rank]
    net = compact(network(), x, slices=2)
    parallel = DistributedDataParallel(net)
    parts = x.chunk(2, 1) if accumulate else (x,)
    for part in parts[:-1]:
        with parallel.no_sync():
            functional.reset_net(net)
            parallel(part).square().sum().backward()
    functional.reset_net(net)
    parallel(parts[-1]).square().sum().backward()
    return {name: 2 * p.grad for name, p in net.named_parameters()}


def test_gradients_under_ddp():
    net = network()
    net(batch()).square().sum().backward()
    for accumulate in (False, True):
        for found in run(gradients, accumulate):
            for name, p in net.named_parameters():
                numpy.testing.assert_allclose(found[name], p.grad, rtol=1e-10, atol=1e-12)


def sharded_gradients(rank):
    """Full gradients of networks whose parameters lie on two ranks, on the same batch on both."""
    return {how: _sharded(how) for how in ("whole", "inside", "modules")}


def _sharded(how):
    torch.manual_seed(1)
    net, x = Membrane().double(), images()
    net = compact(net, x, slices=2)
    if how == "inside":  # each block gathers its own parameters
        for block in (net.down1, net.down2, net.blocks2):
            fully_shard(block)
    elif how == "modules":  # which are then no longer what compact knows
        fully_shard(net.stem[0])
        fully_shard(net.blocks2.branch[1])
    fully_shard(net)
    functional.reset_net(net)
    net(x).square().sum().backward()
    return {name: p.grad.full_tensor() for name, p in net.named_parameters()}


def test_gradients_under_fsdp2():
    torch.manual_seed(1)
    net, x = Membrane().double(), images()
    net(x).square().sum().backward()
    for rank in run(sharded_gradients):
        for found in rank.values():
            for name, p in net.named_parameters():
                numpy.testing.assert_allclose(found[name], p.grad, rtol=1e-9, atol=1e-11)
