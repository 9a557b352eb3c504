"""NIR: what leaves by `export_to_nir` and comes back by NIRTorch computes what the network does.

The oracle is NIR's own equations, stepped by Euler's rule here, on the modules that
``nirtorch.nir_to_torch`` wires.
"""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.neuron import IMPIFNode, IMPLIFNode, IMPParametricLIFNode, TurnOffNode, TurnOnNode
from sj_ext.nir import export_to_nir

nir = pytest.importorskip("nir")
nirtorch = pytest.importorskip("nirtorch")
DT = 1e-3
LOSSY = ("initial_potential", "soft_reset")


class Euler(nn.Module):
    """One neuron of NIR; ``slope`` is the right-hand side of its equation."""

    def __init__(self, node, slope, fires):
        super().__init__()
        self.node, self.slope, self.fires = node, slope, fires

    def forward(self, x, state=None):
        meta = self.node.metadata
        if state is None:
            state = torch.zeros_like(x)
            if self.fires:
                state = state + torch.as_tensor(self.node.v_reset)
            if "first_input" in meta:  # starts a neuron from the potential that NIR cannot say
                x = x + torch.as_tensor(meta["first_input"])
        v = state + DT * self.slope(self.node, state, x)
        if not self.fires:
            return v, v
        z = (v >= torch.as_tensor(self.node.v_threshold)).to(x)
        if "reset" in meta:
            return z, v - z * torch.as_tensor(self.node.v_threshold)
        return z, torch.where(z > 0, torch.as_tensor(self.node.v_reset).to(v), v)


class Above(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.threshold = torch.as_tensor(node.threshold)

    def forward(self, x):
        return (x > self.threshold).to(x)


def integral(node, v, x):
    return torch.as_tensor(node.r) * x


def leak(node, v, x):
    return (torch.as_tensor(node.v_leak) - v + torch.as_tensor(node.r) * x) / torch.as_tensor(
        node.tau
    )


class Affine(nn.Module):
    """NIRTorch 2.6 drops the bias of its own."""

    def __init__(self, node):
        super().__init__()
        self.weight, self.bias = torch.as_tensor(node.weight), torch.as_tensor(node.bias)

    def forward(self, x):
        return x @ self.weight.T + self.bias


BACK = {
    nir.Affine: Affine,
    nir.IF: lambda node: Euler(node, integral, True),
    nir.LIF: lambda node: Euler(node, leak, True),
    nir.LI: lambda node: Euler(node, leak, False),
    nir.I: lambda node: Euler(node, integral, False),
    nir.Threshold: Above,
    # NIR counts axes without the batch
    nir.Flatten: lambda node: nn.Flatten(int(node.start_dim) + 1, int(node.end_dim)),
}


def back(graph, x_seq):
    module, state, outputs = nirtorch.nir_to_torch(graph, BACK, dtype=torch.float64), None, []
    for x in x_seq:
        y, state = module(x) if state is None else module(x, state)
        outputs.append(y)
    return torch.stack(outputs)


NODES = {
    "IF": lambda: host.neuron.IFNode(v_reset=0.0),
    "LIF": lambda: host.neuron.LIFNode(tau=1.7, v_reset=0.1),
    "IMP-IF, soft": lambda: IMPIFNode(v_reset=None, imp_shape="neuron", imp_init=(-0.9, 0.9)),
    "IMP-LIF": lambda: IMPLIFNode(tau=1.6, v_reset=-0.1, imp_init=(-0.9, 0.9)),
    "IMP-LIF, no decay of the input": lambda: IMPLIFNode(
        tau=1.6, decay_input=False, v_reset=None, imp_init=(-0.9, 0.9), imp_shape="neuron"
    ),
    "IMP-PLIF": lambda: IMPParametricLIFNode(init_tau=1.9, imp_init=(-0.9, 0.9)),
    "turn-on": lambda: TurnOnNode(0.6, 0.7),
    "turn-on, a decay each": lambda: TurnOnNode([0.9, -0.4, 0.2, 0.01], 0.5, decay_shape="channel"),
    "turn-on, no decay": lambda: TurnOnNode(1.0, 0.7),
}


@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_the_way_there_and_back_computes_the_same(make, mode, tmp_path):
    net = nn.Sequential(
        host.layer.Conv2d(2, 4, 3, padding=1), make(), host.layer.AvgPool2d(2), host.layer.Flatten()
    )
    net.append(host.layer.Linear(16, 3))
    net.double()
    x_seq = 2 * torch.randn(5, 2, 2, 4, 4, dtype=torch.float64)
    host.functional.set_step_mode(net, "m")
    with torch.no_grad():
        wanted = net(x_seq)
    host.functional.reset_net(net)
    host.functional.set_step_mode(net, mode)
    path = tmp_path / "net.nir"
    graph = export_to_nir(net, x_seq if mode == "m" else x_seq[0], dt=DT, lossy=LOSSY)
    nir.write(path, graph)
    torch.testing.assert_close(back(graph, x_seq), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back(nir.read(path), x_seq), wanted, rtol=1e-6, atol=1e-6)


def test_without_the_metadata_an_initial_potential_is_lost():
    net = nn.Sequential(IMPIFNode(v_reset=0.0, imp_init=(0.9, 0.95), imp_shape="neuron"))
    x_seq = torch.full((2, 1, 3), 0.2)
    sj_ext.materialize(net, x_seq[0])
    graph = export_to_nir(net, x_seq[0], dt=DT, lossy=("initial_potential",))
    node = next(node for node in graph.nodes.values() if isinstance(node, nir.IF))
    assert node.metadata["v_init"].shape == (3,)
    assert back(graph, x_seq.double())[0].all()
    node.metadata.clear()
    assert not back(graph, x_seq.double()).any()


def test_a_turn_on_neuron_fires_at_its_threshold():
    graph = export_to_nir(nn.Sequential(TurnOnNode(0.5, 0.5)), torch.zeros(1, 2), dt=DT)
    above = next(node for node in graph.nodes.values() if isinstance(node, nir.Threshold))
    x = torch.tensor([0.5, np.nextafter(np.float32(0.5), np.float32(0))], dtype=torch.float64)
    assert Above(above)(x).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IMPIFNode(v_reset=0.0), "0 starts from a learned potential.*initial_potential"),
        (lambda: host.neuron.IFNode(v_reset=None), "0 subtracts its threshold.*soft_reset"),
        (lambda: TurnOnNode(1.5), "decay of 0 is 1.5"),
        (TurnOffNode, "0 is a TurnOffNode"),
        (lambda: host.layer.BatchNorm1d(3), "0 is a BatchNorm1d.*fold"),
        (lambda: nn.ReLU(), "0 is a ReLU"),
    ],
)
def test_what_nir_cannot_say_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        export_to_nir(nn.Sequential(make()), torch.rand(1, 3))


def test_bad_arguments():
    net, x = nn.Sequential(TurnOnNode()), torch.rand(1, 3)
    with pytest.raises(ValueError, match="dt"):
        export_to_nir(net, x, dt=0)
    with pytest.raises(ValueError, match="lossy"):
        export_to_nir(net, x, lossy=("weights",))
    with pytest.raises(TypeError, match="model"):
        export_to_nir(None, x)


def test_without_nirtorch_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RuntimeError, match="pip install nirtorch"):
        export_to_nir(nn.Sequential(TurnOnNode()), torch.rand(1, 3))
