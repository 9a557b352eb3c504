"""QuantizedClip has the values and gradients of the published activations."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sj_ext
from sj_ext.ann2snn import QuantizedClip, replace_activations
from sj_ext.ann2snn.activation import bound_group


@pytest.mark.parametrize("levels", [1, 4, 16, None])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_values_and_gradients_are_those_of_the_formula(levels, shift):
    x = (torch.randn(400, dtype=torch.float64) * 2).requires_grad_()
    bound = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    act = QuantizedClip(1.7, levels, shift).double()
    act.bound = 1.7
    y = act(x)
    if levels is None:
        wanted = torch.minimum(x.clamp(min=0), bound)
        inside_bound = torch.zeros_like(x)
    else:
        wanted = bound * ((x * levels / bound + shift).floor() / levels).clamp(0, 1)
        inside_bound = (wanted - x) / bound
    torch.testing.assert_close(y, wanted.detach())
    grad = torch.randn_like(x)
    dx, drho = torch.autograd.grad((y * grad).sum(), [x, act.rho])
    inside = (x >= 0) & (x < bound)
    torch.testing.assert_close(dx, grad * inside)
    dbound = (grad * torch.where(inside, inside_bound, (x >= bound).double())).sum()
    torch.testing.assert_close(drho, (dbound * torch.sigmoid(act.rho)).detach())


def test_the_named_ones():
    x = torch.linspace(-1, 3, 101)
    torch.testing.assert_close(QuantizedClip.relu1()(x), x.clamp(0, 1))
    torch.testing.assert_close(QuantizedClip.relu2()(x), x.clamp(0, 2))
    torch.testing.assert_close(QuantizedClip.tcl(1.5)(x), x.clamp(0, 1.5))
    torch.testing.assert_close(QuantizedClip.cq(4)(x), (4 * x.clamp(0, 1)).floor() / 4)
    torch.testing.assert_close(
        QuantizedClip.bits(3, 2.0)(x), 2 * (7 * (x / 2).clamp(0, 1) + 0.5).floor() / 7
    )
    assert QuantizedClip.qcfs(8).levels == 8 and QuantizedClip.bits(2).levels == 3
    learned = [m for m in (QuantizedClip.relu1(), QuantizedClip.cq(2)) if list(m.parameters())]
    assert not learned


def test_a_bound_stays_above_zero_whatever_the_optimizer_does():
    act = QuantizedClip.qcfs(4, bound=0.1)
    optimizer = torch.optim.SGD(act.parameters(), lr=5.0)
    for _ in range(20):
        act(torch.full((10,), 1.0)).sum().backward()
        optimizer.step()
        assert act.bound.item() > 0
    with pytest.raises(ValueError, match="bound"):
        act.bound = -1.0


def test_bounds_have_a_group_of_their_own_and_no_weight_decay():
    net = nn.Sequential(nn.Linear(3, 4), QuantizedClip(), nn.Linear(4, 2), QuantizedClip.relu1())
    group = bound_group(net, lr=0.1)
    assert group["name"] == "bound" and group["params"] == [net[1].rho]
    decayed, exempt = sj_ext.parameter_groups(net, 0.1)
    assert any(p is net[1].rho for p in exempt["params"])
    assert not any(p is net[1].rho for p in decayed["params"])
    with pytest.raises(ValueError, match="bound"):
        bound_group(nn.ReLU())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"bound": 0.0}, ValueError),
        ({"bound": "a"}, TypeError),
        ({"levels": 0}, ValueError),
        ({"levels": 2.0}, TypeError),
        ({"shift": 1.0}, ValueError),
    ],
)
def test_wrong_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        QuantizedClip(**arguments)


class Calls(nn.Module):
    """One ReLU in two places, and calls."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.layers[0](x))
        x = F.relu(self.layers[1](x)) + x
        x = F.relu6(self.layers[2](x))
        return self.act(self.layers[3](x).clamp(min=0))


def test_modules_and_calls_are_replaced_each_by_its_own():
    net, x = Calls(), torch.randn(5, 6)
    names, wanted = set(net.state_dict()), copy.deepcopy(net)(x)
    made = []

    def factory():
        made.append(QuantizedClip(100.0))
        return made[-1]

    found = replace_activations(net, (nn.ReLU, nn.ReLU6), factory)
    assert len(found) == 5 and len(found.modules) == 2 and len(found.calls) == 3
    assert "5 activations replaced" in str(found)
    used = {m for m in net.modules() if isinstance(m, QuantizedClip)}
    assert len(used) == 5
    assert names <= set(net.state_dict())
    torch.testing.assert_close(net(x), wanted.clamp(max=100))
    copy.deepcopy(net)(x).sum().backward()


def test_a_network_of_modules_stays_what_it_is():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    assert len(replace_activations(net, nn.ReLU, QuantizedClip)) == 2
    assert type(net) is nn.Sequential and isinstance(net[2][1], QuantizedClip)


def test_nothing_to_replace_raises():
    with pytest.raises(ValueError, match="no LeakyReLU"):
        replace_activations(Calls(), nn.LeakyReLU, QuantizedClip)
    with pytest.raises(TypeError, match="factory"):
        replace_activations(Calls(), nn.ReLU, lambda: 3)
