"""T-RevSNN, whose weights are standardised in each call: zeros count, and its blocks shrink."""

import copy

import pytest
import torch
from torch import nn

from sj_ext import host
from sj_ext.functional import tet_s_cross_entropy
from sj_ext.model import TRevSNN, reparameterize
from sj_ext.pruning import MinimaxPruner, carry_over, density, hand_over, make_permanent, shrink

functional = host.functional


def network(norm="bn"):
    net = TRevSNN((4, 6, 8, 8), 5, 2, in_channels=3, encode="repeat", norm=norm)
    for name, p in net.named_parameters():  # the neurons fire, and the blocks matter
        if name.endswith("gamma"):
            nn.init.normal_(p, 0, 2)
    return net.double()  # no spike hangs on rounding


def batch():
    return torch.rand(4, 3, 32, 32).double(), torch.randint(5, (4,))


def train(net, pruner, optimizer, steps):
    for _ in range(steps):
        x, target = batch()
        optimizer.zero_grad()
        functional.reset_net(net)
        tet_s_cross_entropy(net(x), target).backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
    functional.reset_net(net)


def output(net, x):
    was, out = net.training, None
    net.eval()
    functional.reset_net(net)
    with torch.no_grad():
        out = net(x)
    functional.reset_net(net)
    net.train(was)
    return out


@pytest.mark.parametrize("norm", ["bn", "ws"])
def test_single_weights_to_a_budget_of_operations(norm):
    net, x = network(norm), batch()[0]
    average = copy.deepcopy(net)
    pruner = MinimaxPruner(
        net, budget=0.3, resource="flops", first=True, example_input=x, schedule=5
    )
    train(net, pruner, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), 6)
    assert pruner.finished and pruner.resource <= 0.3
    for module in net.modules():
        if hasattr(module, "effective_weight"):
            zero = module.weight == 0
            assert not module.effective_weight()[zero].any()
    want = output(net, x)
    plain = network(norm)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(output(plain, x), want)
    average.load_state_dict({**net.state_dict()})
    assert torch.equal(output(hand_over(net, average), x), want)
    make_permanent(net)
    assert torch.equal(output(net, x), want) and density(net) == pruner.density
    folded = reparameterize(net)
    assert sum(int((p == 0).sum()) for p in folded.parameters()) > 100


@pytest.mark.parametrize("norm", ["bn", "ws"])
def test_the_channels_inside_of_the_blocks_are_taken_out(norm):
    net, (x, _) = network(norm), batch()
    pruner = MinimaxPruner(
        net,
        budget=0.8,
        granularity="channel",
        example_input=x,
        layers="*.blocks.?.pwconv",
        schedule=5,
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    train(net, pruner, optimizer, 6)
    assert pruner.finished and density(net) == pruner.density <= 0.8
    small = shrink(net, x)
    hidden = [m.weight.shape[0] for n, m in small.named_modules() if n.endswith("0.pwconv")]
    dense = [m.weight.shape[0] for n, m in net.named_modules() if n.endswith("0.pwconv")]
    assert sum(hidden) < 0.8 * sum(dense)
    y = batch()[0]
    want, got = output(net, y), output(small, y)
    assert want.abs().max() > 0
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))

    other = carry_over(optimizer, net, small)
    names = dict(small.named_parameters())
    moved = 0
    for name, p in net.named_parameters():
        moment = optimizer.state[p].get("exp_avg") if p in optimizer.state else None
        if moment is not None:
            found = other.state[names[name]]["exp_avg"]
            assert found.shape == names[name].shape
            moved += found.shape != moment.shape
    assert moved
    # both learn on alike, in the block's one function too
    torch.manual_seed(7)
    train(net, None, optimizer, 1)
    torch.manual_seed(7)
    train(small, None, other, 1)
    assert any(type(m).__name__ == "SpikingBlock" and m._standard() for m in small.modules())
    want, got = output(net, y), output(small, y)
    torch.testing.assert_close(got, want)
