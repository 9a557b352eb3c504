"""Ranks of a distributed run keep the same masks throughout, or say that they do not."""

import gloo
import pytest
import torch
from pruning.nets import mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_ext import host
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner


def train(rank, resource, layerwise):
    from pruning.nets import spiking_mlp

    from sj_ext.pruning import density
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


def everything(rank):
    trained = {
        "params": train(rank, "params", False),
        "synops": train(rank, "synops", True),
    }
    texts = attempts(rank).items()
    return {**trained, "said": {key: torch.tensor(list(text.encode())) for key, text in texts}}


@pytest.fixture(scope="module")
def ranks():
    return gloo.run(everything)


@pytest.mark.parametrize("resource", ["params", "synops"])
def test_masks_are_the_same_throughout(ranks, resource):
    one, two = (rank[resource] for rank in ranks)
    assert one["met"] and two["met"]
    assert (one["digest"] == two["digest"]).all()
    assert (one["s"] == two["s"]).all()


def attempt(rank, cls=MinimaxPruner, seed=0, same_data=True, score=None, **options):
    torch.manual_seed(seed)
    model = mlp()
    pruner = cls(model, budget=0.4, first=True, schedule=6, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0 if same_data else rank)
    try:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.rand(4, 12, generator=generator)).square().mean().backward()
            optimizer.step()
            pruner.step()
            if score is not None:
                pruner.score(score)
    except RuntimeError as error:
        return str(error)
    return "finished" if pruner.finished else "no end"


def attempts(rank):
    return {
        "equal": attempt(rank, score=1.0),
        "other weights": attempt(rank, seed=rank),
        "other weights, one cut": attempt(rank, GlobalMagnitudePruner, seed=rank),
        "other data": attempt(rank, same_data=False),
        "other scores": attempt(rank, score=float(rank)),
        "on purpose": attempt(rank, seed=rank, same_data=False, across_ranks=False),
        "alone": attempt(rank, across_ranks=False) if rank else "finished",
    }


def test_divergence_is_told_on_every_rank(ranks):
    for rank in ranks:
        said = {key: bytes(value.tolist()).decode() for key, value in rank["said"].items()}
        assert said.pop("equal") == said.pop("on purpose") == said.pop("alone") == "finished"
        scores = said.pop("other scores")
        assert "pruner.score()" in scores and "reduce" in scores
        for words in said.values():
            assert "cut different weights" in words and "DistributedDataParallel" in words
            assert "across_ranks=False" in words
