"""Budgets in amounts per sample, and all that is known when a pruner is built."""

import pytest
import torch
from pruning.nets import mlp, move, narrow_vgg, spiking_mlp
from torch import nn

from sj_ext import host
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, Schedule, measure_latency


def finish(model, pruner, train=None):
    while not pruner.finished:
        if train is None:
            move(model)
        else:
            train()
        pruner.step()
    return pruner


@pytest.mark.parametrize("cls", [MinimaxPruner, GlobalMagnitudePruner])
@pytest.mark.parametrize("amount", [999, 1000, 1707, "1_234", "1.5k"])
def test_a_number_of_weights_is_met_exactly(cls, amount):
    model = mlp()
    pruner = finish(model, cls(model, budget={"params": amount}, first=True, schedule=12))
    want = {"1_234": 1234, "1.5k": 1500}.get(amount, amount)
    assert pruner.kept == want
    kept = sum(int(m.weight.count_nonzero()) for m in model[::2])
    assert kept == want


def test_multiplications_of_one_sample():
    model, x = narrow_vgg(), torch.rand(2, 3, 3, 32, 32)
    pruner = MinimaxPruner(
        model, budget={"flops": "0.5 MMAC"}, example_input=x, first=True, schedule=8
    )
    finish(model, pruner)
    res = pruner.resources[0]
    macs = {info.name: res.positions[info.name] / 3 for info in res.layers}
    kept = sum(macs[n] * model.get_submodule(n).weight.count_nonzero() for n in macs)
    assert 0.5e6 - max(macs.values()) < kept <= 0.5e6


def test_energy_of_one_sample_while_firing_rates_move():
    model, x = spiking_mlp(), (torch.rand(4, 8, 12) > 0.5).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    target = torch.randint(6, (8,))
    pruner = MinimaxPruner(
        model, budget={"energy": "2 nJ"}, example_input=x, first=True, schedule=20
    )
    dense = pruner.resources[0].amount()
    assert pruner.budgets == [pytest.approx(2e-9 / dense)] and dense > 2e-9
    rates = dict(pruner.resources[0].measured)

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).mean(0), target).backward()
        optimizer.step()
        host.functional.reset_net(model)

    finish(model, pruner, train)
    res = pruner.resources[0]
    assert res.measured != rates
    joule = 0.0
    for info in res.layers:  # four steps of one sample, additions only: the input is spikes
        rate = res.measured[info.name][1]
        joule += 4 * 0.9e-12 * rate * int(info.parameter.count_nonzero())
    assert 1.9e-9 < joule <= 2e-9


def test_latency_of_one_sample():
    model, x = mlp(), torch.rand(4, 12)
    table = measure_latency(model, x, densities=(0.1, 0.5), repeats=1)
    assert table.samples == 4
    table.seconds = {"0": [1e-3, 3e-3, 4e-3], "2": [1e-3, 2e-3, 8e-3], "4": [0.0, 0.0, 4e-3]}
    pruner = MinimaxPruner(
        model, budget={"latency": "2 ms"}, latency_table=table, first=True, schedule=8
    )
    assert pruner.budgets == [0.5]
    assert finish(model, pruner).resource <= 0.5


def test_an_amount_and_a_share_together_and_a_schedule_of_ones_own():
    model, x = mlp(), torch.rand(4, 12)
    schedule = Schedule.geometric(0.2, 12, levels=(0.5,))
    pruner = MinimaxPruner(
        model, budget={"params": 500, "flops": 0.4}, example_input=x, first=True, schedule=schedule
    )
    finish(model, pruner)
    assert pruner.kept == 500 and pruner.resource["flops"] <= 0.4


def test_a_run_with_an_amount_is_resumed():
    x = (torch.rand(4, 8, 12) > 0.5).float()

    def build(seed):
        torch.manual_seed(seed)
        model = spiking_mlp()
        return model, MinimaxPruner(
            model, budget={"energy": "2 nJ"}, example_input=x, first=True, schedule=20
        )

    model, pruner = build(1)
    for _ in range(5):
        move(model)
        pruner.step()
    fresh, other = build(2)
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(pruner.state_dict())
    assert other.schedule == pruner.schedule and other.budgets == pruner.budgets
    for net, each in ((model, pruner), (fresh, other)):
        torch.manual_seed(3)
        finish(net, each)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(),
                                                 strict=True))  # fmt: skip


def test_floor_and_plan_are_known_before_any_training():
    model, x = spiking_mlp(), (torch.rand(4, 8, 12) > 0.5).float()
    pruner = MinimaxPruner(
        model, budget={"energy": 0.9, "params": 0.9}, example_input=x, schedule=30
    )
    floor = pruner.floor()
    assert floor["params"] == pytest.approx(360 / 1440)
    assert 0 < floor["energy"] < 0.9
    stages, layers = pruner.plan.split("\n\n")
    assert stages.splitlines()[0].split()[:3] == ["stage", "energy", "params"]
    assert len(layers.splitlines()) == 5 and "left dense" in layers
    assert MinimaxPruner(mlp(), budget=0.5).floor() == pytest.approx(480 / 2320)


def test_an_impossible_amount_fails_when_it_is_built_with_the_figures():
    x = (torch.rand(4, 8, 12) > 0.5).float()
    with pytest.raises(ValueError, match=r"1 pJ .* of resource 'energy' cannot be met") as caught:
        MinimaxPruner(spiking_mlp(), budget={"energy": "1 pJ"}, example_input=x)
    assert "one by one: 0 " in str(caught.value) and "first=True" in str(caught.value)
    MinimaxPruner(spiking_mlp(), budget={"energy": "1 pJ"}, example_input=x, first=True)


@pytest.mark.parametrize(
    ("budget", "error", "match"),
    [
        ({"energy": "50"}, ValueError, "50 nJ"),
        ({"energy": "50 nW"}, ValueError, "50 nJ"),
        ({"energy": 50}, ValueError, "50 nJ"),
        ({"params": "many"}, TypeError, "many"),
        ({"params": 1.5}, ValueError, r"\(0, 1\]"),
        ({"params": "0"}, ValueError, "1_000_000"),
        ({"energy": "50 nJ"}, ValueError, "give the pruner example_input"),
    ],
)
def test_amounts_that_mean_nothing(budget, error, match):
    with pytest.raises(error, match=match):
        MinimaxPruner(mlp(), budget=budget)
