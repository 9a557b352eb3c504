"""Attention is cut by whole heads: queries, keys, values and what reads them together."""

import pytest
import torch
from pruning.nets import often_firing
from torch import nn

from sj_ext import host
from sj_ext.layer.attention import DSSA, SDSA1, SDSA3, SSA
from sj_ext.model.transformer.spikformer import spikformer
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, carry_over, shrink
from sj_ext.pruning.dependency import trace

functional, layer = host.functional, host.layer
DIM, HEADS = 16, 4


class Net(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.stem, self.norm = layer.Conv2d(3, DIM, 3, padding=1), layer.BatchNorm2d(DIM)
        self.attn = attention
        self.head = layer.Linear(DIM, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.norm(self.stem(x))
        return self.head((x + self.attn(x)).mean((-2, -1)))


ATTENTIONS = {
    "SSA": (lambda: SSA(DIM, HEADS), "attn.[qkv].conv"),
    "SDSA-3": (lambda: SDSA3(DIM, HEADS), "attn.[qkv].rep.outer.conv"),
    "SDSA-1": (lambda: SDSA1(DIM), "attn.[qkv].conv"),
    "DSSA": (lambda: DSSA(DIM, HEADS, patch_size=2), None),
}


def lively(net, x):
    """A network whose attention fires, with statistics of its own."""
    often_firing(net)
    for _ in range(3):
        functional.reset_net(net)
        net(x)
    functional.reset_net(net)
    return net


def pruned(name):
    make, layers = ATTENTIONS[name]
    x = torch.rand(2, 3, 3, 8, 8)
    net = lively(Net(make()), x)
    shares = dict.fromkeys(("SSA", "SDSA-3", "SDSA-1"), 0.85) | {"DSSA": 0.6}
    pruner = GlobalMagnitudePruner(
        net,
        budget=shares[name],
        granularity="channel",
        example_input=x,
        schedule=1,
        layers=layers,
        first=True,
    )
    with torch.no_grad():
        net.stem.bias += 0.1  # a step
        for p in net.parameters():
            p += 0.001
    pruner.step()
    assert pruner.finished and pruner.resource <= shares[name]
    return net, x


def assert_same(net, small, x):
    outputs = []
    for model in (net, small):
        model.eval()
        functional.reset_net(model)
        with torch.no_grad():
            outputs.append(model(x))
        functional.reset_net(model)
    want, got = outputs
    assert want.abs().max() > 0
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_go_as_a_whole(name):
    net, x = pruned(name)
    small = shrink(net, x)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    if name == "DSSA":
        left = small.attn.num_heads
        assert 1 <= left < HEADS and small.attn.firing_rate_x.shape[2] == left
        assert small.stem.out_channels == left * DIM // HEADS
    elif name != "SDSA-1":  # which has none
        left = small.attn.product.heads
        maps = [getattr(net.attn, k) for k in "qkv"]
        last = [m.conv if name == "SSA" else m.rep.outer.conv for m in maps]
        gone = [(m.weight == 0).flatten(1).all(1).view(HEADS, -1) for m in last]
        assert all(torch.equal(g, gone[0]) for g in gone)
        assert torch.equal(gone[0].all(1), gone[0].any(1))
        assert left == HEADS - int(gone[0].all(1).sum()) and 1 <= left < HEADS
    rates = []
    node = net.attn.neuron_attn
    node.register_forward_hook(lambda module, args, y: rates.append(y.mean().item()))
    assert_same(net, small, torch.rand_like(x))
    assert rates[0] > 0


def test_a_spikformer_is_shrunk_by_heads_and_learns_on():
    x = torch.rand(2, 3, 16, 16)
    net = spikformer(5, 2, depth=2, dim=DIM, num_heads=HEADS, patch_size=4)
    net = lively(net, x)
    pruner = MinimaxPruner(
        net, budget=0.5, granularity="channel", example_input=x, schedule=3, resource="flops"
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    while not pruner.finished:
        functional.reset_net(net)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        pruner.step()
    small = shrink(net, x)
    heads = [m.heads for m in small.modules() if hasattr(m, "heads")]
    assert len(heads) == 2 and sum(heads) < 2 * HEADS
    other = carry_over(optimizer, net, small)
    functional.reset_net(small)
    small(x).square().mean().backward()
    other.step()
    functional.reset_net(small)
    small = shrink(net, x)
    assert_same(net, small, torch.rand_like(x))


def test_channels_that_no_module_splits_into_heads_stay():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.first(x).unflatten(1, (4, 2)).softmax(2).flatten(1, 2)
            return self.second(y)

    net = Split()
    graph = trace(net, torch.rand(2, 3, 4, 4))
    held = {graph.atoms.place[a][0] for f in graph.atoms.families().values() for a in f}
    assert id(net.first.weight) not in held and not graph.heads
