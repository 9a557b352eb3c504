"""Ranks of a distributed run keep the same masks throughout."""

import gloo
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_ext import host


def train(rank, resource, layerwise):
    from pruning.nets import spiking_mlp

    from sj_ext.pruning import MinimaxPruner, density
    from sj_ext.pruning.masks import masked_layers

    torch.manual_seed(3)
    model = spiking_mlp()
    pruner = MinimaxPruner(
        model, budget=0.2, resource=resource, first=True, schedule=24, layerwise=layerwise
    )
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    digest = []
    for i in range(pruner.total_steps):
        generator = torch.Generator().manual_seed(1000 * rank + i)  # each rank has its own data
        # and its own firing rates
        x = torch.rand(3, 8, 12, generator=generator) * (1 + 2 * rank)
        target = torch.randint(6, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(x).mean(0), target).backward()
        optimizer.step()
        host.functional.reset_net(model)
        pruner.step()
        zero = [(m.weight == 0).flatten() for _, m, _ in masked_layers(model)]
        masks = [mask.mask.flatten() for _, _, mask in masked_layers(model)]
        digest.append(torch.cat([*zero, *masks]))
    assert pruner.finished
    met = pruner.resource <= 0.2 and density(model) == pruner.density
    return {"digest": torch.stack(digest), "s": torch.tensor(pruner.s), "met": torch.tensor(met)}


def check(resource, layerwise):
    one, two = gloo.run(train, resource, layerwise)
    assert one["met"] and two["met"]
    assert (one["digest"] == two["digest"]).all()
    assert (one["s"] == two["s"]).all()


def test_global_by_parameters():
    check("params", False)


def test_layerwise_by_synaptic_operations_of_different_data():
    check("synops", True)
