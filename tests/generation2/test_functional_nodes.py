"""SpikingJelly 2.x: our neurons are functional nodes that its own tools know."""

import gc

import pytest
import torch
from spikingjelly.activation_based import base, memopt, op_counter
from torch import nn

from sj_ext import host
from sj_ext.neuron import IMPIFNode, IMPLIFNode, IMPParametricLIFNode, MultiLevelFiringNode


@pytest.fixture(autouse=True)
def no_pruner_of_before_watches():
    gc.collect()


functional, layer, neuron = host.functional, host.layer, host.neuron
MAKERS = {
    "IMPIFNode": lambda: IMPIFNode(step_mode="m", imp_shape="layer"),
    "IMPLIFNode": lambda: IMPLIFNode(step_mode="m", imp_shape="layer"),
    "IMPParametricLIFNode": lambda: IMPParametricLIFNode(step_mode="m", imp_shape="layer"),
    "MultiLevelFiringNode": lambda: MultiLevelFiringNode(step_mode="m"),
}


@pytest.fixture(params=MAKERS, ids=str)
def node(request):
    return MAKERS[request.param]()


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_functional_forward_equals_the_module(node, step_mode):
    functional.set_step_mode(node, step_mode)
    forward = base.to_functional_forward(node)
    states = tuple(base.extract_memories(node))
    x = torch.randn(4, 3, 5) + 0.5
    (y,), after = forward((x,), states)
    assert tuple(base.extract_memories(node)) == states  # the module's own memory is untouched
    assert torch.equal(node(x), y)
    assert torch.equal(node.v, after[0])
    (again,), _ = forward((x,), after)
    assert torch.equal(node(x), again)


def test_functional_forward_gives_theta_its_gradient():
    node = IMPLIFNode(step_mode="m", imp_shape="layer")
    x = torch.randn(4, 3, 5) + 0.5
    node(x).sum().backward()
    want, node.theta.grad = node.theta.grad, None
    functional.reset_net(node)
    (y,), _ = base.to_functional_forward(node)((x,), tuple(base.extract_memories(node)))
    y.sum().backward()
    assert torch.equal(node.theta.grad, want)


@pytest.mark.parametrize("chunks", [1, 2])
def test_memopt_checkpointing_keeps_outputs_and_gradients(node, chunks):
    plain = nn.Sequential(layer.Linear(5, 5, step_mode="m"), node)
    x = (torch.randn(4, 3, 5) + 0.5).requires_grad_()
    y = plain(x)
    y.sum().backward()
    wants = [p.grad.clone() for p in plain.parameters()] + [x.grad.clone()]
    functional.reset_net(plain)
    plain.zero_grad()
    x.grad = None
    saving = nn.Sequential(
        plain[0],
        memopt.checkpoint_module(plain[1], compressor=None, chunks=chunks),
    )
    again = saving(x)
    assert torch.equal(again, y)
    again.sum().backward()
    for p, want in zip([*saving.parameters(), x], wants, strict=True):
        torch.testing.assert_close(p.grad if p is not x else x.grad, want)


def test_neuron_state_counter_sees_the_state(node):
    counter = op_counter.NeuronStateCounter()
    net = nn.Sequential(node)
    with op_counter.DispatchCounterMode([counter]), torch.no_grad():
        net(torch.rand(4, 3, 5))
    metrics = counter.get_metric_counts()["Global"]
    assert metrics["state_reads"] > 0 and metrics["state_writes"] > 0


def test_neuron_state_counter_counts_an_imp_node_like_its_host_twin():
    def metrics(node):
        counter = op_counter.NeuronStateCounter()
        node(torch.rand(4, 3, 5))  # sizes and states exist
        with op_counter.DispatchCounterMode([counter]), torch.no_grad():
            node(torch.rand(4, 3, 5))
        return counter.get_metric_counts()

    ours = metrics(nn.Sequential(IMPLIFNode(step_mode="m")))
    hosts = metrics(nn.Sequential(neuron.LIFNode(step_mode="m")))
    assert ours["Global"] == hosts["Global"]


def test_energy_estimate_knows_the_nodes(node):
    net = nn.Sequential(layer.Linear(5, 6, step_mode="m"), node, layer.Linear(6, 2, step_mode="m"))
    report = op_counter.estimate_simple_energy(net, (torch.rand(4, 3, 5),))
    assert report.energy_total_pj > 0
    assert report.counts["neuron_state_read_bytes"] > 0


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_compiled_node_equals_the_eager_one(node, step_mode):
    check_compiled(node, step_mode, "aot_eager")


def test_machine_code_of_a_compiled_node_equals_the_eager_one():
    check_compiled(IMPLIFNode(step_mode="m", imp_shape="channel"), "m", "inductor")


def check_compiled(node, step_mode, backend):
    functional.set_step_mode(node, step_mode)
    net = nn.Sequential(nn.Linear(5, 5), node)
    net(torch.rand(4, 3, 5))  # sizes exist
    functional.reset_net(net)
    x = torch.randn(4, 3, 5) + 0.5
    y = net(x)
    y.sum().backward()
    wants = [p.grad.clone() for p in net.parameters()]
    functional.reset_net(net)
    net.zero_grad()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    again = compiled(x)
    torch.testing.assert_close(again, y)
    again.sum().backward()
    for p, want in zip(net.parameters(), wants, strict=True):
        torch.testing.assert_close(p.grad, want)
