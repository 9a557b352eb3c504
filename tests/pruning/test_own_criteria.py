"""Criteria and masks from elsewhere: the same counts, the same holding."""

import pytest
import torch
from pruning.nets import mlp, move, narrow_vgg
from torch import nn
from torch.nn.utils import prune

from sj_ext.pruning import (
    GlobalMagnitudePruner,
    Importance,
    MinimaxPruner,
    Taylor,
    density,
    hold_masks,
    make_permanent,
)


class Reversed(Importance):
    """The largest weights go first."""

    def scores(self, layer):
        weight = layer.parameter.detach().abs()
        return torch.where(weight > 0, 1 / weight.clamp(min=1e-9), 0)


def weights(model):
    return torch.cat([m.weight.detach().flatten() for m in model[::2]])


def test_a_users_criterion_says_which_and_the_pruner_how_many():
    model = mlp()
    pruner = GlobalMagnitudePruner(model, budget=0.4, first=True, schedule=1, importance=Reversed())
    move(model)
    before = weights(model)
    pruner.step()
    after = weights(model)
    assert pruner.kept == int(0.4 * len(before)) == int(after.count_nonzero())
    assert before[after != 0].abs().max() <= before[after == 0].abs().min()


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("cls", [GlobalMagnitudePruner, MinimaxPruner])
def test_taylor_cuts_what_the_loss_does_not_feel(cls, granularity):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = cls(
        model, budget=0.7, first=True, schedule=10, importance=Taylor(), granularity=granularity
    )
    x = torch.rand(16, 12)
    x[:, 6:] = 0  # no gradient reaches the weights of these inputs
    first = True
    while not pruner.finished:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        pruner.step()
        if first and granularity == "weight" and cls is GlobalMagnitudePruner:
            assert not model[0].weight[:, 6:].any()
            first = False
    assert pruner.resource <= 0.7


def test_scores_that_are_none():
    class Bad(Importance):
        def __init__(self, value):
            self.value = value

        def scores(self, layer):
            return self.value

    for value, error in ((1.0, TypeError), (torch.ones(3), ValueError)):
        pruner = GlobalMagnitudePruner(mlp(), budget=0.4, first=True, importance=Bad(value))
        move(pruner.model)
        with pytest.raises(error, match="scores of Bad"):
            pruner.step()
    with pytest.raises(TypeError, match="importance must be"):
        MinimaxPruner(mlp(), budget=0.4, importance="taylor")
    pruner = GlobalMagnitudePruner(mlp(), budget=0.4, first=True, importance=Taylor())
    move(pruner.model)
    with pytest.raises(RuntimeError, match=r"no gradient of layer '0'"):
        pruner.step()


def test_masks_made_elsewhere_are_held():
    model = mlp()
    kept = torch.rand(40, 40) > 0.5
    bias = torch.rand(40) > 0.5
    hold_masks(model, {"2": kept, "0.bias": bias})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(3):
        model(torch.rand(8, 12)).square().sum().backward()
        optimizer.step()
    assert torch.equal(model[2].weight != 0, kept) and torch.equal(model[0].bias != 0, bias)
    assert density(model) == pytest.approx((480 + int(kept.sum()) + 240) / 2320)
    with pytest.raises(ValueError, match="pruned already"):
        hold_masks(model, {"2": kept})
    make_permanent(model)
    assert torch.equal(model[2].weight != 0, kept)


def test_a_mask_of_torchs_own_pruning():
    model = mlp()
    prune.l1_unstructured(model[2], "weight", 0.5)
    mask = model[2].weight_mask.bool()
    prune.remove(model[2], "weight")
    hold_masks(model, {"2.weight": mask})
    assert int(model[2].weight.count_nonzero()) == 800


def test_masks_that_fit_nothing():
    model = mlp()
    for masks, error in (
        ({"7": torch.ones(3, 3).bool()}, ValueError),
        ({"2": torch.ones(3, 3).bool()}, ValueError),
        ({"0": torch.ones(40, 12).bool(), "2": torch.ones(40, 40)}, TypeError),
    ):
        with pytest.raises(error, match="masks"):
            hold_masks(model, masks)
    assert density(model) == 1
    MinimaxPruner(model, budget=0.5)


def test_a_bias_that_torch_prunes():
    model = mlp()
    prune.random_unstructured(model[2], "bias", 0.5)
    MinimaxPruner(model, budget=0.5)  # weights alone: none of its business
    model = narrow_vgg()
    prune.random_unstructured(model[3], "bias", 0.5)
    with pytest.raises(ValueError, match=r"remove\(module, 'bias'\)"):
        MinimaxPruner(model, budget=0.5, granularity="channel")
    prune.remove(model[3], "bias")
    MinimaxPruner(model, budget=0.5, granularity="channel")
    model = mlp()
    prune.random_unstructured(model[2], "weight", 0.5)
    with pytest.raises(ValueError, match=r"remove\(module, 'weight'\)"):
        MinimaxPruner(model, budget=0.5)
    prune.remove(model[2], "weight")
    MinimaxPruner(model, budget=0.5)
    assert isinstance(model[2].weight, nn.Parameter)
