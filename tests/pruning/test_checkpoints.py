"""A masked checkpoint is a plain one, and those of 0.1 load."""

from pathlib import Path

import pytest
import torch
from pruning.nets import mlp, move
from torch import nn

from sj_ext.pruning import MinimaxPruner, density, make_permanent, plain_state_dict

#: recorded with sj_ext 0.1: Linear(5, 8), ReLU, Linear(8, 4), SGD with momentum, 20 steps
OLD = Path(__file__).with_name("data") / "checkpoints_of_0_1.pt"


def small():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("phase", ["compress", "finetune", "finished"])
def test_a_masked_checkpoint_loads_into_a_plain_network_and_back(phase):
    model, plain = mlp(), mlp()
    pruner = MinimaxPruner(model, budget=0.4, first=True, schedule=20)
    while pruner.phase != phase:
        move(model)
        pruner.step()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(3, 12)
    assert torch.equal(plain(x), model(x))
    assert density(plain) == pytest.approx(pruner.density)
    model.load_state_dict(plain.state_dict())
    assert plain_state_dict(model.state_dict()).keys() == plain.state_dict().keys()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_away(prefix):
    model = mlp()
    state = {prefix + name: value for name, value in model.state_dict().items()}
    mlp().load_state_dict(plain_state_dict(state))


@pytest.mark.parametrize("phase", ["compress", "finetune"])
def test_a_run_of_0_1_goes_on_to_the_same_end(phase):
    old = torch.load(OLD, weights_only=True)
    saved = old[phase]
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    pruner = MinimaxPruner(net, budget=0.4, first=True, schedule=20)
    net.load_state_dict(plain_state_dict(saved["net"]))
    optimizer.load_state_dict(saved["optimizer"])
    pruner.load_state_dict(saved["pruner"])
    for i in range(saved["done"], 20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(old["x"][i]), old["t"][i]).backward()
        optimizer.step()
        pruner.step()
    assert pruner.finished
    end = plain_state_dict(old["end"])
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, end[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(parameter == 0, end[name] == 0)


def test_a_finished_file_of_0_1_without_a_pruner():
    old = torch.load(OLD, weights_only=True)
    net = small()
    net.load_state_dict(plain_state_dict(old["finetune"]["net"]))
    assert density(net) <= 0.4


def test_a_state_of_0_1_before_the_models_says_what_to_do():
    old = torch.load(OLD, weights_only=True)
    pruner = MinimaxPruner(small(), budget=0.4, first=True, schedule=20)
    with pytest.raises(ValueError, match="plain_state_dict"):
        pruner.load_state_dict(old["finetune"]["pruner"])
    with pytest.raises(TypeError, match="state dict"):
        plain_state_dict([1])


def test_both_orders_of_loading_hold_the_same_zeros():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.4, first=True, schedule=20)
    while pruner.phase != "finetune":
        move(model)
        pruner.step()
    states = model.state_dict(), pruner.state_dict()
    for order in (1, -1):
        fresh = mlp()
        other = MinimaxPruner(fresh, budget=0.4, first=True, schedule=20)
        for part, state in list(zip((fresh, other), states, strict=True))[::order]:
            part.load_state_dict(state)
        optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
        fresh(torch.rand(4, 12)).square().sum().backward()
        optimizer.step()
        assert other.step() and other.kept == pruner.kept
        make_permanent(fresh)
        want = [m.weight == 0 for m in model[::2]]
        assert all(torch.equal(m.weight == 0, w) for m, w in zip(fresh[::2], want, strict=True))
