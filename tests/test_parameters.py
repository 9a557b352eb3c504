"""parameter_groups: neurons' and norms' parameters are kept out of weight decay."""

import pytest
import torch
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.neuron import IMPLIFNode, IMPParametricLIFNode
from sj_ext.surrogate import DSpike


def network():
    return nn.Sequential(
        host.layer.Conv2d(1, 4, 3),
        host.layer.BatchNorm2d(4),
        IMPParametricLIFNode(imp_shape="layer", surrogate_function=DSpike(learnable=True)),
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.LayerNorm(5),
        IMPLIFNode(imp_shape="layer"),
    )


def test_each_parameter_is_in_one_group_and_the_right_one():
    net = network()
    decayed, free = sj_ext.parameter_groups(net, 0.05, 0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert {names[id(p)] for p in free["params"]} == {
        "1.weight", "1.bias", "2.w", "2.theta", "2.surrogate_function.alpha",
        "5.weight", "5.bias", "6.theta",
    }  # fmt: skip
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert decayed["lr"] == free["lr"] == 0.1


def test_weight_decay_leaves_theta_alone():
    node = IMPLIFNode(imp_shape="layer", imp_init=(0.5, 0.5))
    net = nn.Sequential(nn.Linear(3, 3), node)
    optimizer = torch.optim.SGD(sj_ext.parameter_groups(net, 0.5, 0.1))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    weight = net[0].weight.detach().clone()
    optimizer.step()
    assert node.theta.item() == 0.5
    torch.testing.assert_close(net[0].weight, weight * 0.95)


def test_a_module_can_name_its_own_exempt_parameters():
    class Scaled(nn.Linear):
        no_weight_decay = frozenset({"bias"})

    net = Scaled(2, 2)
    decayed, free = sj_ext.parameter_groups(net, 0.1)
    assert decayed["params"] == [net.weight] and "lr" not in decayed
    assert len(free["params"]) == 1 and free["params"][0] is net.bias


def test_shared_parameters_are_listed_once():
    shared = nn.Linear(2, 2)
    groups = sj_ext.parameter_groups(nn.Sequential(shared, shared), 0.1, 0.1)
    assert [len(g["params"]) for g in groups] == [2, 0]
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("kwargs", [{"weight_decay": -1, "lr": 1}, {"weight_decay": 0, "lr": -1}])
def test_negative_rates_are_refused(kwargs):
    with pytest.raises(ValueError, match="weight_decay|lr"):
        sj_ext.parameter_groups(nn.Linear(1, 1), **kwargs)


@pytest.mark.parametrize("decays", [[0.5, 0.25], [[0.5, 0.25], [0.4, 0.3]]])
def test_decays_of_a_reversible_cell_do_not_decay(decays):
    cell = sj_ext.layer.TemporalReversible([nn.Linear(3, 3), nn.Linear(3, 3)], decays)
    decayed, free = sj_ext.parameter_groups(cell, 0.1)
    assert {id(p) for p in free["params"]} == {id(p) for p in cell.decays.parameters()}
    assert {id(p) for p in decayed["params"]} == {id(p) for p in cell.levels.parameters()}
