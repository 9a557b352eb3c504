"""A pruner before or after what wraps the network: the same masks everywhere, or a refusal."""

import gloo
import pytest
import torch
from pruning.nets import mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_ext.pruning import MinimaxPruner, density

ORDERS = (
    ("pruner first", False),
    ("DDP first", False),
    ("DDP first", True),
    ("network inside", True),
)


def train_all(rank):
    return {str(case): train(rank, *case) for case in ORDERS}


def train(rank, order, unused):
    torch.manual_seed(3)
    model = mlp()
    options = {"budget": 0.2, "first": True, "schedule": 14}
    if order == "pruner first":
        pruner = MinimaxPruner(model, **options)
    wrapped = DistributedDataParallel(model, find_unused_parameters=unused)
    if order == "DDP first":
        pruner = MinimaxPruner(wrapped, **options)
    elif order == "network inside":
        pruner = MinimaxPruner(model, **options)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    zeros = []
    for i in range(18):
        generator = torch.Generator().manual_seed(1000 * rank + i)
        x = torch.rand(8, 12, generator=generator)
        target = torch.randint(6, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x), target).backward()
        optimizer.step()
        pruner.step()
        zeros.append(torch.cat([(p == 0).flatten() for p in model.parameters() if p.dim() > 1]))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    exact = pruner.finished and int(0.2 * 2320) == pruner.kept
    return {
        "zeros": torch.stack(zeros),
        "weights": weights,
        "exact": torch.tensor(exact and density(model) == pruner.density),
    }


def test_ranks_agree_whatever_came_first():
    for one, two in zip(*(rank.values() for rank in gloo.run(train_all)), strict=True):
        assert one["exact"] and two["exact"]
        assert (one["zeros"] == two["zeros"]).all() and (one["weights"] == two["weights"]).all()


@pytest.mark.parametrize("order", ["pruner first", "compile first", "network inside"])
def test_around_torch_compile(order):
    model = mlp()
    options = {"budget": 0.2, "first": True, "schedule": 10}
    pruner = MinimaxPruner(model, **options) if order == "pruner first" else None
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if pruner is None:
        pruner = MinimaxPruner(compiled if order == "compile first" else model, **options)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=0.01)
    x, target = torch.rand(16, 12), torch.randint(6, (16,))
    for _ in range(14):
        optimizer.zero_grad()
        torch.testing.assert_close(compiled(x), model(x))
        nn.functional.cross_entropy(compiled(x), target).backward()
        optimizer.step()
        pruner.step()
    assert pruner.finished and pruner.kept == int(0.2 * 2320) and density(model) <= 0.2
    for p in model.parameters():
        assert p.dim() == 1 or not p.grad[p == 0].any()


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("resource", ["synops", "energy", "flops"])
def test_a_compiled_network_is_measured_as_an_eager_one_is(resource, granularity):
    start, x = mlp().state_dict(), torch.rand(16, 12)
    cuts = []
    for compiled in (False, True):
        model = mlp()
        model.load_state_dict(start)
        options = {"budget": {resource: 0.4}, "first": True, "schedule": 6}
        if resource == "flops":
            options["example_input"] = x
        pruner = MinimaxPruner(model, granularity=granularity, **options)
        net = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
            pruner.step()
        assert pruner.finished
        cuts.append((pruner.resource, pruner.kept))
    assert cuts[0] == pytest.approx(cuts[1])


def test_a_run_is_resumed_with_or_without_a_wrapper():
    options = {"budget": 0.2, "first": True, "schedule": 10}
    model = mlp()
    pruner = MinimaxPruner(torch.compile(model, backend="eager"), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(4, 12)).square().sum().backward()
    optimizer.step()
    pruner.step()
    parts = nn.Sequential(*(torch.compile(m, backend="eager") for m in mlp()))
    assert any("_orig_mod" in name for name, _ in parts.named_parameters())
    other = MinimaxPruner(parts, **options)
    other.load_state_dict(pruner.state_dict())
    assert other.steps_done == 1
    MinimaxPruner(mlp(), **options).load_state_dict(other.state_dict())
