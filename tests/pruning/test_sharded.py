"""FSDP2: a pruner before or after ``fully_shard`` cuts what it cuts in one process.

The oracle is the same training under DistributedDataParallel, whose ranks hold whole weights.
"""

import gloo
import pytest
import torch
from pruning.nets import mlp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sj_ext.pruning import (
    LayerMagnitudePruner,
    MinimaxPruner,
    Taylor,
    density,
    export_csr,
    hold_masks,
    make_permanent,
    shrink,
)

CASES = {
    "minimax": lambda: (MinimaxPruner, {}),
    "layerwise": lambda: (MinimaxPruner, {"layerwise": True}),
    "by layer": lambda: (LayerMagnitudePruner, {}),
    "Taylor": lambda: (MinimaxPruner, {"importance": Taylor()}),
    "channel": lambda: (
        MinimaxPruner,
        {"granularity": "channel", "example_input": torch.rand(2, 12)},
    ),
    "flops": lambda: (MinimaxPruner, {"resource": "flops", "example_input": torch.rand(2, 12)}),
    "score": lambda: (MinimaxPruner, {}),
}


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for part in model:
        if isinstance(part, nn.Linear):
            fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batch(rank, i):
    generator = torch.Generator().manual_seed(1000 * rank + i)
    x = torch.rand(8, 12, generator=generator)
    return x, torch.randint(6, (8,), generator=generator)


def whole(parameter):
    return getattr(parameter, "full_tensor", parameter.clone)().detach().clone()


def learn(rank, model, optimizer, i, pruner=None):
    x, target = batch(rank, i)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), target).backward()
    optimizer.step()
    return pruner is not None and pruner.step()


def train(rank, case, way):
    torch.manual_seed(5)
    model = mlp()
    cls, options = CASES[case]()
    options |= {"budget": 0.4, "first": True, "schedule": 6}
    pruner = cls(model, **options) if way == "pruner first" else None
    wrapped = DistributedDataParallel(model) if way == "DDP" else shard(model)
    pruner = pruner or cls(model, **options)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for i in range(8):
        learn(rank, wrapped, optimizer, i, pruner)
        if case == "score" and i in (3, 4):
            with torch.no_grad():  # leaves the parameters of the root whole
                model(torch.rand(2, 12))
            pruner.score(-i)
    counted = torch.tensor([pruner.finished, pruner.steps_done == 6, pruner.density <= 0.4])
    same = torch.tensor(abs(density(model) - pruner.density) < 1e-9)
    kept = torch.tensor(pruner.kept)
    learn(rank, wrapped, optimizer, 99)  # zeros hold without the pruner
    weights = torch.cat([whole(p).flatten() for p in model.parameters()])
    grads = torch.cat([whole(p.grad).flatten() for p in model.parameters()])
    return {"weights": weights, "grads": grads, "kept": kept, "counted": counted, "same": same}


def train_all(rank):
    found = {}
    for case in CASES:
        first = {"minimax": ("pruner first", "shard first"), "channel": ("pruner first",)}
        for way in ("DDP", *first.get(case, ("shard first",))):
            found[f"{case}|{way}"] = train(rank, case, way)
    return found


def both(rank):
    return {"trained": train_all(rank), "other": other_calls(rank)}


@pytest.fixture(scope="module")
def ranks():
    return gloo.run(both)


def test_masks_are_those_of_whole_weights(ranks):
    one, two = (rank["trained"] for rank in ranks)
    assert one.keys() == two.keys()
    for key, found in one.items():
        want = one[key.split("|")[0] + "|DDP"]
        for rank in (found, two[key]):
            assert rank["counted"].all() and rank["same"], key
            assert rank["kept"] == want["kept"], key
            assert ((rank["weights"] == 0) == (want["weights"] == 0)).all(), key
            assert ((rank["grads"] == 0) == (want["grads"] == 0)).all(), key
            torch.testing.assert_close(*map(torch.as_tensor, (rank["weights"], want["weights"])))


def other_calls(rank):
    torch.manual_seed(5)
    done = {}
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(5):
        learn(0, model, optimizer, i, pruner)  # the same everywhere
    zeros = [p.detach() == 0 for p in model.parameters()]
    shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i in range(3):
        learn(rank, model, optimizer, i)
    held = [(whole(p)[z] == 0).all() for p, z in zip(model.parameters(), zeros, strict=True)]
    done["sharded after the end"] = torch.stack(held).all()

    again = shard(mlp())
    other = MinimaxPruner(again, budget=0.3, first=True, schedule=4)
    for p, q in zip(again.parameters(), model.parameters(), strict=True):
        p.detach().to_local().copy_(q.detach().to_local())
    other.load_state_dict(pruner.state_dict())
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    learn(rank, again, optimizer, 0, other)
    done["resumed"] = torch.tensor(other.finished and density(again) == pruner.density <= 0.3)

    entries = export_csr(again)
    done["exported"] = torch.tensor(len(entries) == 3)
    try:
        shrink(again, torch.rand(2, 12))
    except RuntimeError as error:
        done["not shrunk"] = torch.tensor("fully_shard" in str(error))
    make_permanent(again)
    done["permanent"] = torch.tensor(density(again) == pruner.density)

    held = shard(mlp())
    hold_masks(held, {"0": zeros[0].logical_not()})
    optimizer = torch.optim.AdamW(held.parameters(), lr=0.1)
    learn(rank, held, optimizer, 0)
    done["masks from elsewhere"] = ((whole(held[0].weight) == 0) == zeros[0]).all()
    try:
        MinimaxPruner(
            shard(mlp()), budget=0.5, granularity="channel", example_input=torch.rand(2, 12)
        )
    except RuntimeError as error:
        done["channels"] = torch.tensor("before fully_shard" in str(error))
    return done


def test_what_else_is_asked_of_a_sharded_network(ranks):
    for rank in ranks:
        done = rank["other"]
        assert len(done) == 7 and all(done.values()), done
