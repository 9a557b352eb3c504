"""A finished pruner has met its budget within one weight, never above, in the announced steps."""

import pytest
import torch
from pruning.nets import BUDGETS, mlp, move, narrow_sew, narrow_vgg, spiking_mlp, total_weights
from torch import nn

from sj_ext import host
from sj_ext.pruning import (
    GlobalMagnitudePruner,
    IterativeMagnitudePruner,
    LayerMagnitudePruner,
    MinimaxPruner,
    Resource,
    Schedule,
    compress_then_finetune,
    density,
    make_permanent,
    resources,
)


def run(model, pruner, size=1e-3):
    steps = 0
    while not pruner.finished:
        move(model, size)
        assert pruner.step()
        steps += 1
        assert steps <= pruner.total_steps
    assert steps == pruner.total_steps
    return pruner


def check(model, pruner, budget):
    total = total_weights(model)
    assert 0 <= budget * total - pruner.kept < 1
    assert pruner.density == density(model) == pruner.kept / total <= budget
    assert pruner.resource <= budget
    make_permanent(model)
    zeros = sum(
        int((m.weight == 0).sum())
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))
    )
    assert total - zeros == pruner.kept


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("build", [mlp, narrow_vgg, narrow_sew, spiking_mlp])
def test_default_settings(build, budget):
    model = build()
    # of these small networks the first layer alone can cost more than the smallest budgets
    first = budget < 0.25
    pruner = MinimaxPruner(model, budget=budget, first=first, schedule=None)
    assert pruner.total_steps == 1000
    run(model, pruner)
    check(model, pruner, budget)


@pytest.mark.parametrize("budget", (0.5, 0.05, 0.002))
def test_layerwise(budget):
    model = mlp(hidden=60)
    pruner = MinimaxPruner(model, budget=budget, first=True, schedule=200, layerwise=True)
    run(model, pruner)
    check(model, pruner, budget)


@pytest.mark.parametrize("steps", (2, 5, 40))
def test_any_number_of_announced_steps(steps):
    model = mlp()
    check(model, run(model, MinimaxPruner(model, budget=0.07, first=True, schedule=steps)), 0.07)


@pytest.mark.parametrize("cls", [GlobalMagnitudePruner, LayerMagnitudePruner])
@pytest.mark.parametrize("budget", (0.5, 0.03))
def test_baselines_in_one_cut(cls, budget):
    model = mlp()
    check(model, run(model, cls(model, budget=budget, first=True, schedule=20)), budget)


def test_iterative_and_compress_then_finetune():
    model = mlp()
    check(model, run(model, IterativeMagnitudePruner(model, budget=0.1, first=True)), 0.1)
    model = mlp()
    pruner = compress_then_finetune(
        model, budget=0.1, first=True, compress_steps=30, finetune_steps=20
    )
    check(model, run(model, pruner), 0.1)


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("value", [0.0, -0.3])
def test_equal_weights_are_cut_to_the_exact_count(value, layerwise):
    model = mlp()
    for module in model[::2]:
        nn.init.constant_(module.weight, value)
    pruner = MinimaxPruner(model, budget=0.1, first=True, schedule=40, layerwise=layerwise)
    while not pruner.finished:
        with torch.no_grad():  # a version that changes, and weights that do not
            for parameter in model.parameters():
                parameter.add_(0)
        pruner.step()
    total = total_weights(model)
    assert 0 <= 0.1 * total - pruner.kept < 1
    assert density(model) == pruner.density


def test_ties_are_cut_in_the_order_of_layers_and_places():
    model = mlp()
    for module in model[::2]:
        nn.init.constant_(module.weight, 0.5)
    pruner = GlobalMagnitudePruner(model, budget=0.5, first=True, schedule=1)
    with torch.no_grad():
        model[0].weight.add_(0)
    pruner.step()
    kept = torch.cat([m.weight.flatten() for m in model[::2]]) != 0
    cut = int((~kept).sum())
    assert not kept[:cut].any() and kept[cut:].all()


@pytest.mark.parametrize("layerwise", [False, True])
def test_other_resources_are_met_and_no_weight_too_many_is_cut(layerwise):
    model = mlp()
    rows = {"0": 5.0, "2": 1.0, "4": 0.25}
    res = Resource("rows", lambda layer, share: rows[layer.name] * layer.weights * share)
    pruner = MinimaxPruner(
        model, budget=0.2, resource=res, first=True, schedule=60, layerwise=layerwise
    )
    run(model, pruner)
    assert pruner.resource <= 0.2
    dense = sum(rows[n] * dict(model.named_modules())[n].weight.numel() for n in rows)
    # one weight of the dearest layer more would be above
    assert pruner.resource + max(rows.values()) / dense > 0.2


def test_a_resource_that_is_not_linear():
    model = mlp()
    res = Resource("root", lambda layer, share: layer.weights * share**0.5)
    run(model, pruner := MinimaxPruner(model, budget=0.4, resource=res, first=True, schedule=60))
    assert 0.39 < pruner.resource <= 0.4


def test_several_budgets_at_once_are_all_met():
    model = narrow_vgg()
    x = torch.rand(2, 2, 3, 32, 32)
    pruner = MinimaxPruner(
        model, budget={"params": 0.3, "flops": 0.2}, example_input=x, first=True, schedule=60
    )
    run(model, pruner)
    assert pruner.resource["params"] <= 0.3 and pruner.resource["flops"] <= 0.2
    # the tighter of the two is used up: one more of its dearest weights would be above
    res = pruner.resources[1]
    dearest = max(res.positions.values()) / res.total()
    assert pruner.resource["params"] > 0.299 or pruner.resource["flops"] + dearest > 0.2


@pytest.mark.parametrize("name", ["synops", "energy"])
def test_measured_resources_are_met_while_rates_move(name):
    model = spiking_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = MinimaxPruner(
        model, budget=0.3, resource=name, first=True, schedule=60, optimizer=optimizer
    )
    for _ in range(pruner.total_steps):
        x, target = torch.rand(3, 8, 12), torch.randint(6, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).mean(0), target).backward()
        optimizer.step()
        host.functional.reset_net(model)
        pruner.step()
    assert pruner.finished and pruner.resource <= 0.3


@pytest.mark.parametrize("layerwise", [False, True])
def test_channels_are_cut_whole_and_the_budget_is_met(layerwise):
    model = narrow_vgg()
    pruner = MinimaxPruner(
        model, budget=0.3, granularity="channel", schedule=40, layerwise=layerwise
    )
    run(model, pruner)
    assert pruner.resource <= 0.3
    sizes = []
    for name in pruner.kept_shares:
        rows = dict(model.named_modules())[name].weight.flatten(1)
        assert (rows != 0).any(1).sum() >= 1
        assert ((rows != 0).any(1) == (rows != 0).float().mean(1).gt(0.9)).all()
        sizes.append(rows.shape[1])
    assert pruner.resource + max(sizes) / total_weights(model) > 0.3


def test_stages_stop_at_their_levels_and_weights_come_back_in_between():
    model = mlp()
    schedule = Schedule.geometric(0.1, 80, levels=(0.5, 0.25))
    pruner = MinimaxPruner(model, budget=0.1, first=True, schedule=schedule)
    levels, held, back = [], None, False
    total = total_weights(model)
    while not pruner.finished:
        move(model, 0.05)
        phase = pruner.phase
        pruner.step()
        zeros = torch.cat([m.weight.flatten() for m in model[::2]]) == 0
        if phase == "compress" and pruner.phase != "compress":
            levels.append(pruner.kept)
        if phase == "finetune" and pruner.phase == "finetune":
            assert held is None or torch.equal(held, zeros)
        if phase == "compress" and held is not None:
            back |= bool((held & ~zeros).any())
        held = zeros
    assert levels == [int(level * total) for level in (0.5, 0.25, 0.1)]
    assert back


def test_without_a_level_to_reach_nothing_is_cut():
    model = mlp()
    pruner = MinimaxPruner(model, budget=1.0, first=True, schedule=4)
    for _ in range(4):
        with torch.no_grad():
            model[0].weight.add_(0)
        pruner.step()
    assert pruner.finished and pruner.density == 1
    assert density(model) == 1


def test_flops_weigh_layers_by_their_places():
    model = narrow_vgg()
    res = resources.flops(torch.rand(2, 2, 3, 32, 32))
    pruner = MinimaxPruner(model, budget=0.5, resource=res, first=True, schedule=4)
    places = {"0.0": 32 * 32, "0.4": 16 * 16, "3": 1}
    # T = 2 and N = 2: four times each
    assert {name: res.positions[name] for name in places} == {
        name: 4 * n for name, n in places.items()
    }
    assert pruner.resource == 1
