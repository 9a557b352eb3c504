"""Every mistake is named when it is made, and the model is left as it was."""

import pytest
import torch
from pruning.nets import mlp, move, narrow_vgg
from torch import nn
from torch.nn.utils import parametrizations, prune

from sj_ext import host
from sj_ext.pruning import (
    GlobalMagnitudePruner,
    LatencyTable,
    MinimaxPruner,
    Resource,
    Schedule,
    Stage,
    density,
    measure_latency,
)
from sj_ext.pruning.masks import masked_layers, parameter_of


def refused(match, model=None, error=ValueError, **arguments):
    model = mlp() if model is None else model
    keys = list(model.state_dict())
    arguments = {"budget": 0.5, **arguments}
    with pytest.raises(error, match=match):
        MinimaxPruner(model, **arguments)
    assert list(model.state_dict()) == keys and not list(masked_layers(model))
    return model


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_budgets_outside_their_range(budget):
    refused(r"budget must be in \(0, 1\]", budget=budget)
    refused(r"budget must be in \(0, 1\]", budget={"params": budget})


def test_budgets_of_the_wrong_kind():
    refused("number", error=TypeError, budget=["a"])
    refused("one number per resource", budget=[0.5, 0.4])
    refused("different names", budget=[0.5, 0.4], resource=["params", "params"])


def test_a_budget_below_what_dense_layers_cost_says_how_much():
    model = mlp(hidden=40, inputs=12, outputs=6)
    share = 480 / (480 + 1600 + 240)
    refused(rf"left dense \(0\) cost {share:.6g}", model, budget=0.1)
    with pytest.raises(ValueError, match="cost"):
        GlobalMagnitudePruner(model, budget=0.1)
    MinimaxPruner(model, budget=share)


def test_synops_below_the_floor_are_refused_at_the_first_step():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.05, resource="synops")
    move(model)
    with pytest.raises(RuntimeError, match="none was seen"):
        pruner.step()
    model(torch.rand(4, 12))
    move(model)
    with pytest.raises(ValueError, match="cannot be met"):
        pruner.step()


def test_no_layer_left():
    refused("no layer is left", nn.Sequential(nn.Linear(3, 3)))
    refused("none is a Linear", nn.Sequential(nn.ReLU()))
    refused("matches no", layers="nowhere")
    refused("matches no", layers=nn.Conv3d)
    refused("matches no", layers=lambda name, module: False)
    refused("names, types or predicates", error=TypeError, layers=[3])


def test_layers_by_name_type_and_predicate():
    def chosen(**arguments):
        return list(MinimaxPruner(narrow_vgg(), budget=0.9, **arguments).kept_shares)

    convolutions = ["0.4", "0.8", "0.11", "0.15", "0.18", "0.22", "0.25"]
    assert chosen() == [*convolutions, "3", "5"]
    assert chosen(layers=nn.Linear) == ["3", "5"]
    assert chosen(layers=host.layer.Conv2d) == convolutions
    assert chosen(layers=host.layer.Conv2d, first=True) == ["0.0", *convolutions]
    assert chosen(layers=["0.0", "3"]) == ["0.0", "3"]
    assert chosen(layers="0.1*") == ["0.11", "0.15", "0.18"]
    assert chosen(layers=lambda name, module: name.startswith("0.2")) == ["0.22", "0.25"]
    assert chosen(layers=["5", nn.Conv2d], last=False) == [*convolutions, "5"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad):
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 3] = bad
    refused("weights of 2 are NaN", model)
    for phase in ("compress", "finetune"):
        model = mlp()
        pruner = MinimaxPruner(model, budget=0.5, schedule=30)
        while pruner.phase != phase:
            move(model)
            pruner.step()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.rand(3, 12)).sum().backward()
        parameter_of(model[2]).grad.fill_(bad)
        optimizer.step()
        with pytest.raises(ValueError, match="weights of 2 are NaN or infinite"):
            pruner.step()


def test_nan_in_channels():
    model = narrow_vgg()
    pruner = MinimaxPruner(model, budget=0.5, granularity="channel", schedule=30)
    with torch.no_grad():
        parameter_of(model[0][8])[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weights of 0\.8 are NaN"):
        pruner.step()


def test_lazy_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(4))
    with pytest.raises(ValueError, match="lazy parameters"):
        MinimaxPruner(model, budget=0.5)
    model(torch.rand(2, 3))
    MinimaxPruner(model, budget=0.5)


def test_modules_that_somebody_else_prunes_or_computes():
    model = mlp()
    prune.l1_unstructured(model[2], "weight", 0.5)
    with pytest.raises(ValueError, match=r"torch\.nn\.utils\.prune"):
        MinimaxPruner(model, budget=0.5)
    model = mlp()
    parametrizations.weight_norm(model[4])
    refused("parametrized by", model)
    model = mlp()
    MinimaxPruner(model, budget=0.5)
    with pytest.raises(ValueError, match="make_permanent"):
        MinimaxPruner(model, budget=0.5)


def test_weights_standardised_by_others_are_left_out():
    class Standardised(nn.Conv2d):  # as timm's and the host's
        def get_weight(self):
            return self.weight - self.weight.mean()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3), nn.Conv2d(4, 4, 3))
    refused("standardised", model, layers="1")
    assert list(MinimaxPruner(model, budget=0.9).kept_shares) == ["2"]


def test_checkpoints_of_something_else():
    def state(model, **arguments):
        return MinimaxPruner(model, **{"budget": 0.5, **arguments}).state_dict()

    pruner = MinimaxPruner(mlp(), budget=0.5)
    for other, match in (
        (state(mlp(hidden=41)), "another network"),
        (state(mlp(), first=True), "another network"),
        (state(mlp(), budget=0.4), "another budgets"),
        (state(mlp(), schedule=50), "another schedule"),
        (state(mlp(), layerwise=True), "another layerwise"),
        (GlobalMagnitudePruner(mlp(), budget=0.5).state_dict(), "another pruner"),
        ({}, "format"),
    ):
        with pytest.raises(ValueError, match=match):
            pruner.load_state_dict(other)


def test_a_pruners_state_without_the_models():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.5, schedule=10)
    while pruner.phase != "finetune":
        move(model)
        pruner.step()
    fresh = mlp()
    other = MinimaxPruner(fresh, budget=0.5, schedule=10)
    other.load_state_dict(pruner.state_dict())
    move(fresh)
    with pytest.raises(RuntimeError, match="state_dict of the same moment"):
        other.step()
    fresh.load_state_dict(model.state_dict())
    move(fresh)
    assert other.step()


def test_latency_tables():
    model, x = mlp(), torch.rand(4, 12)
    refused("needs latency_table", resource="latency")
    table = measure_latency(model, x, densities=(0.1, 0.5), repeats=1)
    other = LatencyTable("cuda: another", table.densities, table.seconds)
    refused("another.*measure it here", resource="latency", latency_table=other)
    short = LatencyTable(table.device, table.densities, {"0": [1.0, 1.0, 1.0]})
    refused("lacks the layers", resource="latency", latency_table=short)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"resource": "bytes"}, ValueError, "resource must be one of"),
        ({"resource": [3]}, TypeError, "name or a Resource"),
        ({"resource": "flops"}, ValueError, "example_input"),
        ({"schedule": 1.5}, TypeError, "schedule must be"),
        ({"schedule": Schedule.geometric(0.4)}, ValueError, "last level"),
        ({"granularity": "filter"}, ValueError, "granularity must be"),
        ({"log_every": 0}, ValueError, "log_every"),
        ({"rates": (0.0, 1.0, 1.0)}, ValueError, r"rates\[0\] must be"),
        ({"lr": -1.0}, ValueError, "lr must be"),
        ({"resource": Resource("nothing", lambda layer, share: 0.0)}, ValueError, "above 0"),
    ],
)
def test_other_arguments(arguments, error, match):
    refused(match, error=error, **arguments)


def test_schedules():
    for arguments, match in (
        ({"budget": 0.0}, "budget"),
        ({"budget": 0.1, "ratio": 1.0}, "ratio"),
        ({"budget": 0.1, "finetune": 1.0}, "finetune"),
        ({"budget": 0.1, "final": -0.1}, "final"),
        ({"budget": 0.1, "steps": 0}, "steps"),
        ({"budget": 0.1, "levels": (0.2, 0.3)}, "must fall"),
    ):
        with pytest.raises(ValueError, match=match):
            Schedule.geometric(**arguments)
    with pytest.raises(ValueError, match="compress_steps"):
        Stage(0.5, 0, 3)
    with pytest.raises(ValueError, match="at least one"):
        Schedule(())


def test_density_of_a_model_without_layers():
    with pytest.raises(ValueError, match="no linear"):
        density(nn.ReLU())
