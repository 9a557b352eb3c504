"""A stage ends at its level or raises, whatever a resource is called and however it behaves."""

import pytest
import torch
from pruning.nets import mlp, move
from torch import nn

from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, Resource, resources


@pytest.mark.parametrize("cls", [MinimaxPruner, GlobalMagnitudePruner])
@pytest.mark.parametrize("name", ["params", "weights", ""])
def test_a_users_resource_may_have_any_name(cls, name):
    prices = {"0": 5.0, "2": 1.0, "4": 0.25}
    res = Resource(name, lambda layer, share: prices[layer.name] * layer.weights * share)
    model = mlp()
    pruner = cls(model, budget=0.3, resource=res, first=True, schedule=30)
    while not pruner.finished:
        move(model)
        pruner.step()
    sizes = {"0": 480, "2": 1600, "4": 240}
    kept = {n: int(model.get_submodule(n).weight.count_nonzero()) for n in sizes}
    cost = sum(prices[n] * kept[n] for n in sizes) / sum(prices[n] * sizes[n] for n in sizes)
    assert cost == pytest.approx(pruner.resource) and cost <= 0.3
    # one weight of the dearest layer more would be above
    assert cost + 5.0 / sum(prices[n] * sizes[n] for n in sizes) > 0.3


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_stage_whose_level_is_out_of_reach_never_ends(layerwise):
    """What the dense first layer costs rises while training: the budget was possible once."""
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    pruner = MinimaxPruner(
        model,
        budget=0.6,
        resource=resources.synops(0.0),
        schedule=8,
        layerwise=layerwise,
        log_every=1,
    )
    with pytest.raises(RuntimeError, match="level is not met: resource 'synops' at"):
        for step in range(pruner.total_steps):
            x = torch.zeros(8, 20)
            x[:, : 1 if step == 0 else 20] = 1.0
            model(x)
            with torch.no_grad():
                model[0].bias.fill_(1.0 if step == 0 else -100.0)
                model[0].bias[:2] = 1.0
            move(model)
            pruner.step()
    assert not pruner.finished
