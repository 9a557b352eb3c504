"""Attention, recurrent layers and bare parameters count; what runs in training alone is free."""

import pytest
import torch
from pruning.nets import mlp, move
from torch import nn

from sj_ext.pruning import MinimaxPruner, density
from sj_ext.pruning.resources import layer_positions


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.LSTM(8, 5, num_layers=2, batch_first=True)
        self.table = nn.Parameter(torch.randn(5, 5))
        self.scale = nn.Parameter(torch.ones(5))
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        x = self.first(x)
        x = self.attention(x, x, x)[0]
        return self.last((self.memory(x)[0] @ self.table) * self.scale)


SIZES = {
    "first": 48,
    "attention.in_proj_weight": 192,
    "attention.out_proj": 64,
    "memory.weight_ih_l0": 160,
    "memory.weight_hh_l0": 100,
    "memory.weight_ih_l1": 100,
    "memory.weight_hh_l1": 100,
    "last": 15,
}


def finish(model, pruner):
    while not pruner.finished:
        move(model)
        pruner.step()
    return pruner


def test_every_matrix_has_its_name_and_its_share():
    model = Mixed()
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=10)
    assert list(pruner.kept_shares) == list(SIZES)
    finish(model, pruner)
    assert pruner.kept == int(0.3 * sum(SIZES.values()))
    assert density(model) == pruner.density
    kept = int(model.attention.in_proj_weight.count_nonzero())
    assert pruner.kept_shares["attention.in_proj_weight"] == kept / 192
    model.train()
    model(torch.rand(2, 4, 6)).sum().backward()
    weight = model.memory.weight_hh_l0
    assert (weight == 0).any() and not weight.grad[weight == 0].any()
    assert model.table.all()


def test_a_bare_parameter_is_pruned_by_name_and_then_counts():
    model = Mixed()
    pruner = MinimaxPruner(model, budget=0.5, layers=["table", "memory", "last"], schedule=10)
    total = sum(SIZES.values()) + 25
    with pytest.raises(ValueError, match=r"by full name table"):
        MinimaxPruner(Mixed(), budget=0.3, layers="nowhere")
    assert pruner.kept == total and "table" in pruner.kept_shares
    assert "attention.out_proj" not in pruner.kept_shares
    finish(model, pruner)
    assert (model.table == 0).any() and density(model) == pruner.density == pruner.kept / total


def test_layers_by_their_type():
    shares = MinimaxPruner(Mixed(), budget=0.9, layers=nn.LSTM).kept_shares
    assert list(shares) == [name for name in SIZES if name.startswith("memory")]


def test_uses_of_weights_inside_of_modules():
    places = layer_positions(Mixed(), torch.rand(2, 4, 6))
    assert places == dict.fromkeys(SIZES, 8)


@pytest.mark.parametrize("resource", ["flops", "synops", "energy"])
def test_resources_see_them(resource):
    model, x = Mixed(), torch.rand(2, 4, 6)
    pruner = MinimaxPruner(
        model, budget=0.4, resource=resource, example_input=x, first=True, schedule=8
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while not pruner.finished:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        pruner.step()
    assert pruner.resource <= 0.4


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head, self.unused = (nn.Linear(6, 6) for _ in range(4))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x, scale=1.0):
        y = self.b(self.norm(self.a(x))) * scale
        return (y, self.head(y)) if self.training else y


@pytest.mark.parametrize("resource", ["flops", "energy"])
def test_layers_of_training_alone_cost_nothing(resource):
    model = Auxiliary()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = MinimaxPruner(
        model, budget=0.5, resource=resource, first=True, layers=["a", "b", "head"],
        example_input={"x": torch.rand(4, 6), "scale": 2.0}, schedule=6,
    )  # fmt: skip
    infos = {info.name: info for info in pruner.resources[0].layers}
    assert pruner.resources[0].cost(infos["head"], 1.0) == 0
    assert pruner.resources[0].cost(infos["b"], 1.0) > 0
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"does not reach the layers \['unused'\].*leave them out"):
        MinimaxPruner(
            Auxiliary(), budget=0.5, resource="flops", first=True,
            example_input=(torch.rand(4, 6), 2.0),
        )  # fmt: skip


def test_frozen_layers_stay_dense_unless_named():
    def model():
        net = mlp()
        net[2].weight.requires_grad_(False)
        return net

    assert list(MinimaxPruner(model(), budget=0.9).kept_shares) == ["4"]
    assert list(MinimaxPruner(model(), budget=0.9, layers=["2", "4"]).kept_shares) == ["2", "4"]
