"""gradient_similarity cuts the gradient between steps, there and nowhere else."""

import math

import pytest
import torch
from torch import nn

from sj_ext import host
from sj_ext.analysis import gradient_similarity
from sj_ext.layer import TemporalReversible

T, N = 6, 5


def network(step_mode="m", node=None, **options):
    node = node or host.neuron.LIFNode
    net = nn.Sequential(
        nn.Linear(4, 8), node(step_mode="m", **options),
        nn.Linear(8, 6), node(step_mode="m", **options), nn.Linear(6, 3),
    )  # fmt: skip
    if step_mode == "s":
        host.functional.set_step_mode(net, "s")
    return net


def loss_of(net, x):
    return lambda: net(x).mean(0).square().sum()


def test_cut_by_hand_in_float64(seed):
    """One layer of leaky neurons, written down with the detach in place."""
    net = nn.Sequential(nn.Linear(4, 8), host.neuron.LIFNode(step_mode="m")).double()
    node, x = net[1], 3 * torch.randn(T, N, 4, dtype=torch.float64)

    def by_hand(cut):
        v, spikes = 0.0, []
        for x_t in x:
            if cut and isinstance(v, torch.Tensor):
                v = v.detach()
            v = v + (net[0](x_t) - v) / node.tau
            spikes.append(node.surrogate_function(v - node.v_threshold))
            v = v * (1 - spikes[-1])  # hard reset to 0
        loss = torch.stack(spikes).mean(0).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())])

    wanted = torch.cosine_similarity(by_hand(False), by_hand(True), dim=0)
    found = gradient_similarity(net, loss_of(net, x), dropped=[node])
    assert found == pytest.approx(float(wanted), abs=1e-9)
    assert found < 0.9999


@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode", "QIFNode"])
def test_nothing_dropped_is_the_full_gradient(name):
    net, x = network(node=getattr(host.neuron, name)), 3 * torch.randn(T, N, 4)
    assert gradient_similarity(net, loss_of(net, x), dropped=[]) == pytest.approx(1)
    assert gradient_similarity(net, loss_of(net, x), kept=["1", "3"]) == pytest.approx(1)
    everywhere = gradient_similarity(net, loss_of(net, x), dropped=[net[1], "3"])
    assert everywhere == gradient_similarity(net, loss_of(net, x), kept=[])
    assert everywhere < 1 - 1e-6


def test_a_single_step_carries_nothing():
    net, x = network(), 3 * torch.randn(1, N, 4)
    assert gradient_similarity(net, loss_of(net, x), kept=[]) == pytest.approx(1)


def test_kept_is_the_complement_of_dropped():
    net, x = network(), 3 * torch.randn(T, N, 4)
    kept = gradient_similarity(net, loss_of(net, x), kept=["3"])
    assert kept == gradient_similarity(net, loss_of(net, x), dropped=["1"])


def test_every_neuron_by_itself():
    net, x = network(), 3 * torch.randn(T, N, 4)
    similarities = gradient_similarity(net, loss_of(net, x))
    assert list(similarities) == ["1", "3"]
    for name, value in similarities.items():
        assert value == gradient_similarity(net, loss_of(net, x), dropped=[name])


def test_both_step_modes_agree():
    net, x = network(), 3 * torch.randn(T, N, 4)
    wanted = gradient_similarity(net, loss_of(net, x))
    host.functional.set_step_mode(net, "s")
    found = gradient_similarity(
        net, lambda: torch.stack([net(s) for s in x]).mean(0).square().sum()
    )
    assert found == pytest.approx(wanted, abs=1e-5)


def test_finds_the_neuron_that_the_gradient_needs():
    """The target hangs on the first input only: what holds it to the end is the second neuron."""

    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.out = nn.Linear(4, 16), nn.Linear(16, 2)
            self.idle = host.neuron.LIFNode(tau=100.0, step_mode="m")
            self.key = host.neuron.LIFNode(tau=100.0, step_mode="m", decay_input=False,
                                           v_threshold=0.1)  # fmt: skip

        def forward(self, x):
            passing = self.read(x)
            return self.out(self.key(passing)) + 0.01 * self.out(self.idle(passing))

    net = Memory()
    x = torch.zeros(T, N, 4)
    x[0] = torch.randn(N, 4)
    found = gradient_similarity(
        net, lambda: net(x)[-1].square().sum(), parameters=[net.read.weight]
    )
    assert found["key"] < found["idle"]


def test_the_network_is_left_as_it_was(seed):
    net = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(), nn.BatchNorm1d(8), host.neuron.IFNode(), nn.Linear(8, 2)
    )
    x = 3 * torch.randn(N, 4)
    net(x).sum().backward()
    host.functional.reset_net(net)
    grads = [p.grad.clone() for p in net.parameters()]
    buffers = [b.clone() for b in net.buffers()]
    state = torch.get_rng_state()
    value = gradient_similarity(net, lambda: sum(net(x).square().mean() for _ in range(3)), kept=[])
    assert torch.equal(torch.get_rng_state(), state)
    for p, grad in zip(net.parameters(), grads, strict=True):
        assert torch.equal(p.grad, grad)
    for b, before in zip(net.buffers(), buffers, strict=True):
        assert torch.equal(b, before)
    assert net[3].v == 0.0
    assert "forward" not in net[3].__dict__
    assert net[3].step_mode == "s"
    assert value == gradient_similarity(
        net, lambda: sum(net(x).square().mean() for _ in range(3)), kept=[]
    )


def test_the_same_dropout_in_every_run():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), host.neuron.IFNode(step_mode="m"))
    x = 3 * torch.randn(T, N, 4)
    assert gradient_similarity(net, loss_of(net, x), dropped=[]) == pytest.approx(1)


def test_a_reversible_cell_can_be_cut_too():
    cell = TemporalReversible([nn.Bilinear(1, 1, 1)], [0.9])
    cell.levels[0].forward = lambda below, above: below * cell.levels[0].weight.sum()
    x = torch.randn(T, N, 1)
    assert gradient_similarity(cell, loss_of(cell, x), dropped=[cell]) < 1 - 1e-6


def test_stored_potentials_are_there_for_the_loss():
    net = network(store_v_seq=True)
    x = 3 * torch.randn(T, N, 4)

    def loss():
        return net(x).mean() + net[1].v_seq.square().mean()

    assert gradient_similarity(net, loss, dropped=["1"]) < 1
    assert net[1].step_mode == "m"


def test_no_gradient_has_no_direction():
    net, x = network(), 3 * torch.randn(T, N, 4)
    assert math.isnan(gradient_similarity(net, lambda: 0 * net(x).sum(), kept=[]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dropped": ["1"], "kept": ["3"]}, ValueError, "exclude each other"),
        ({"dropped": ["2.node"]}, ValueError, r"must name modules.*\['1', '3'\]"),
        ({"dropped": ["0"]}, ValueError, "modules with memories"),
        ({"kept": [nn.Linear(1, 1)]}, ValueError, "part of the network"),
        ({"dropped": [1]}, TypeError, "names or modules"),
        ({"dropped": "1"}, TypeError, "dropped must be a sequence"),
        ({"parameters": []}, ValueError, "parameters must have one"),
        ({"loss": 3}, TypeError, "loss must be a function"),
        ({"loss": lambda: torch.ones(2)}, ValueError, "scalar that requires a gradient"),
        ({"loss": lambda: 1.0}, ValueError, "scalar that requires a gradient"),
        ({"network": lambda x: x}, TypeError, "model must be a torch.nn.Module"),
        ({"network": nn.Linear(4, 2)}, ValueError, "at least one neuron"),
    ],
)
def test_bad_input(arguments, error, message):
    net = network()
    defaults = {"network": net, "loss": loss_of(net, torch.randn(2, 3, 4))}
    with pytest.raises(error, match=message):
        gradient_similarity(**(defaults | arguments))
