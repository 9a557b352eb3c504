"""What PyTorch's own tests ask of ``torch.nn.utils.prune``, asked of the pruners here."""

import io
import pickle

import pytest
import torch
from pruning.nets import mlp
from torch import nn

from sj_ext.pruning import (
    GlobalMagnitudePruner,
    Importance,
    LayerMagnitudePruner,
    density,
    hold_masks,
    make_permanent,
)


def cut(model, budget, cls=GlobalMagnitudePruner, **options):
    """The network after one cut; a small step of an optimizer comes before it."""
    pruner = cls(model, **{"budget": budget, "schedule": 1, "first": True, **options})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    pruner.step()
    assert pruner.finished
    return pruner


def weights(model):
    return [p for p in model.parameters() if p.dim() > 1]


@pytest.mark.parametrize("wrong", [-0.1, 0, 1.1, 0.0, float("nan")])
def test_an_amount_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="budget"):
        GlobalMagnitudePruner(mlp(), budget=wrong)


@pytest.mark.parametrize("wrong", [None, True, [], object()])
def test_an_amount_of_the_wrong_kind_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="budget"):
        GlobalMagnitudePruner(mlp(), budget=wrong)


@pytest.mark.parametrize("budget", [1.0, 0.999, 1 / 3, 0.1, 7, 2319])
def test_shares_and_whole_numbers_are_rounded_down(budget):
    model = mlp()
    total = sum(p.numel() for p in weights(model))
    pruner = cut(model, budget)
    assert pruner.kept == int(budget if budget > 1 else budget * total)
    assert sum(int(p.count_nonzero()) for p in weights(model)) == pruner.kept


def test_equal_magnitudes_are_cut_to_the_number():
    model = mlp()
    for p in weights(model):
        nn.init.constant_(p, -0.5)
    assert cut(model, 0.25).kept == 580 == round(density(model) * 2320)


def test_the_smallest_of_all_layers_together_go():
    model = mlp()
    flat = torch.cat([p.detach().abs().flatten() for p in weights(model)])
    cut(model, 0.2)
    kept = torch.cat([(p != 0).flatten() for p in weights(model)])
    assert torch.equal(kept.nonzero(), (flat >= flat.sort().values[-464]).nonzero())


def test_each_layer_loses_its_smallest():
    model = mlp()
    before = [p.detach().clone() for p in weights(model)]
    cut(model, 0.5, LayerMagnitudePruner)
    for p, was in zip(weights(model), before, strict=True):
        assert int((p == 0).sum()) == p.numel() // 2
        assert was[p == 0].abs().max() <= was[p != 0].abs().min()


def test_random_scores_choose_at_random():
    class Random(Importance):
        def scores(self, layer):
            generator = torch.Generator().manual_seed(layer.weights)
            return torch.rand(layer.parameter.shape, generator=generator) + 0.1

    model, other = mlp(), mlp()
    pruner = cut(model, 0.3, importance=Random())
    cut(other, 0.3, importance=Random())
    assert pruner.kept == 696
    for p, q in zip(weights(model), weights(other), strict=True):
        assert torch.equal(p == 0, q == 0)


def test_whole_rows_and_the_least_norm_first():
    model = mlp()
    norms = model[2].weight.detach().square().mean(1)
    cut(model, 0.8, granularity="channel", layers="2", example_input=torch.rand(2, 12))
    gone = (model[2].weight == 0).all(1)
    assert gone.any() and torch.equal(model[2].weight == 0, gone[:, None].expand(40, 40))
    assert norms[gone].max() <= norms[~gone].min() and not model[2].bias[gone].any()


def test_a_mask_of_ones_changes_nothing_and_a_mask_of_ones_own_is_held():
    model = mlp()
    before = model[0].weight.detach().clone()
    mask = torch.rand_like(before) > 0.5
    hold_masks(model, {"0": torch.ones_like(mask), "2": torch.rand(40, 40) > 0.5})
    assert torch.equal(model[0].weight, before)
    make_permanent(model)
    hold_masks(model, {"0": mask})
    assert torch.equal(model[0].weight, before * mask)


def test_one_cut_after_another():
    model = mlp()
    cut(model, 0.5)
    zeros = [p == 0 for p in weights(model)]
    make_permanent(model)
    cut(model, 0.2)
    assert all((p[z] == 0).all() for p, z in zip(weights(model), zeros, strict=True))
    assert density(model) == 0.2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_and_are_counted(kind):
    model = nn.ModuleDict({"rnn": kind(6, 8, 2), "head": nn.Linear(8, 3)})
    pruner = cut(model, 0.3)
    out = model["head"](model["rnn"](torch.rand(5, 2, 6))[0])
    out.sum().backward()
    assert pruner.density <= 0.3 and density(model) == pruner.density
    for p in weights(model):
        assert not p.grad[p == 0].any()


def test_parameters_stay_the_same_objects_under_the_same_names():
    model = mlp()
    before = {name: id(p) for name, p in model.named_parameters()}
    cut(model, 0.5)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    make_permanent(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_what_is_not_pruned_cannot_be_made_permanent():
    with pytest.raises(ValueError, match="nothing is pruned"):
        make_permanent(mlp())


def test_pickled_saved_and_loaded():
    model, x = mlp(), torch.rand(3, 12)
    cut(model, 0.5)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), model(x)) and density(other) == 0.5
    plain = mlp()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), model(x))
