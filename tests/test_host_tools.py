"""The host's monitors, helpers and containers with our neurons in place of the host's.

The oracle is the host's own neuron: an IMP node that starts from the reset value is that neuron.
"""

import copy

import nodes
import pytest
import torch
from contracts import run
from spikingjelly.activation_based import monitor
from torch import nn

from sj_ext import host, swap_neurons
from sj_ext.neuron import MultiLevelFiringNode, TurnOffNode, TurnOnNode, with_learnable_imp
from sj_ext.surrogate import Rect

functional, layer, neuron = host.functional, host.layer, host.neuron
PAIRS = [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, neuron.QIFNode]


def network(node_class, step_mode="m"):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        nodes.make(node_class),
        layer.Flatten(),
        layer.Linear(4 * 25, 6),
        nodes.make(node_class),
    )
    functional.set_step_mode(net, step_mode)
    return net


def pair(node_class, step_mode="m"):
    """A network of the host's neurons, and the same with ours at the reset value."""
    hosts = network(node_class, step_mode)
    ours = copy.deepcopy(hosts)
    start = hosts[2]._memories_rv["v"]
    made = with_learnable_imp(node_class)
    assert swap_neurons(ours, {node_class: made}, imp_init=(start, start)) == 2
    return ours, hosts


@pytest.fixture(params=PAIRS, ids=lambda cls: cls.__name__)
def node_class(request):
    return request.param


@pytest.fixture(params=["s", "m"])
def step_mode(request):
    return request.param


def frames():
    return torch.randn(4, 3, 2, 5, 5) * 2


# ---- monitors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["output", "input", "v after", "v_seq"])
def test_forward_monitors_record_what_they_record_of_the_host(node_class, step_mode, what):
    records = []
    x_seq = frames()
    for net in pair(node_class, step_mode):
        if what == "v_seq":
            functional.set_step_mode(net, "m")
            for node in net:
                if isinstance(node, node_class):
                    node.store_v_seq = True
        watched = {
            "output": lambda net: monitor.OutputMonitor(net, node_class),
            "input": lambda net: monitor.InputMonitor(net, node_class),
            "v after": lambda net: monitor.AttributeMonitor("v", False, net, node_class),
            "v_seq": lambda net: monitor.AttributeMonitor("v_seq", False, net, node_class),
        }[what](net)
        for _ in range(2):
            functional.reset_net(net)
            functional.set_step_mode(net, "m" if what == "v_seq" else step_mode)
            xs = x_seq if what == "v_seq" or step_mode == "m" else x_seq[0]
            with torch.no_grad():
                net(xs)
        assert watched.monitored_layers == ["2", "5"]
        records.append({name: watched[name] for name in watched.monitored_layers})
        watched.disable()
        net(xs)
        assert len(watched["2"]) == 2
        watched.clear_recorded_data()
        assert not watched.records
        watched.remove_hooks()
    ours, hosts = records
    for name, wanted in hosts.items():
        assert len(ours[name]) == len(wanted) == 2
        for one, other in zip(ours[name], wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["GradInputMonitor", "GradOutputMonitor"])
def test_gradient_monitors_record_what_they_record_of_the_host(node_class, kind):
    records, x_seq = [], frames()
    for net in pair(node_class):
        watched = getattr(monitor, kind)(net, node_class, lambda grad: grad.square().sum())
        net(x_seq).sum().backward()
        records.append([value for name in ("2", "5") for value in watched[name]])
        watched.remove_hooks()
    assert len(records[0]) == 2
    for one, other in zip(*records, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("contract", nodes.PLUGIN)
def test_monitors_see_every_neuron_of_the_plugin(contract, step_mode):
    node = nodes.PLUGIN[contract].make()
    functional.set_step_mode(node, step_mode)
    net = nn.Sequential(node)
    x = torch.randn(4, 3, 5, 2, 6, requires_grad=True)
    x = x if step_mode == "m" else x[0]
    outputs = monitor.OutputMonitor(net, type(node), lambda y: y.mean())
    slopes = monitor.GradInputMonitor(net, type(node), lambda grad: grad.norm())
    y = net(x)
    y.sum().backward()
    assert torch.equal(outputs[0], y.mean())
    assert outputs.monitored_layers == ["0"] and len(slopes.records) == 1
    outputs.remove_hooks(), slopes.remove_hooks()


# ---- functional ----------------------------------------------------------------------------------


def test_reset_detach_and_step_mode_reach_every_neuron(node_class):
    ours, _ = pair(node_class)
    holder = nn.ModuleDict({"a": nn.ModuleList([ours]), "b": TurnOnNode(), "c": TurnOffNode()})
    functional.set_step_mode(holder, "s")
    assert {m.step_mode for m in holder.modules() if hasattr(m, "step_mode")} == {"s"}
    functional.set_step_mode(holder, "m")
    ours(frames()), holder["b"](torch.randn(3, 2, requires_grad=True))
    functional.detach_net(holder)
    for module in holder.modules():
        for value in getattr(module, "_memories", {}).values():
            assert not value.requires_grad
    functional.reset_net(holder)
    for module in holder.modules():
        assert getattr(module, "_memories", {}) == getattr(module, "_memories_rv", {})


def test_truncated_backpropagation_gives_the_hosts_gradients(node_class):
    found, x_seq = [], torch.cat([frames(), frames()])
    for net in pair(node_class):
        for part in x_seq.split(2):
            net(part).sum().backward()
            functional.detach_net(net)
        functional.reset_net(net)
        found.append({n: p.grad for n, p in net.named_parameters() if not n.endswith("theta")})
    for name, wanted in found[1].items():
        torch.testing.assert_close(found[0][name], wanted, rtol=1e-4, atol=1e-5)


def test_multi_step_forward_runs_single_step_neurons(node_class):
    outputs, x_seq = [], frames().double()
    for net in pair(node_class, "s"):
        net.double().eval()  # batch statistics would be those of one step, or of all
        outputs.append(functional.multi_step_forward(x_seq, list(net)))
        functional.reset_net(net)
        outputs.append(functional.multi_step_forward(x_seq, net))
        functional.reset_net(net)
        functional.set_step_mode(net, "m")
        outputs.append(functional.chunk_multi_step_forward(2, x_seq, net))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])


def test_a_turn_off_node_has_no_state_that_seq_to_ann_would_mix():
    x_seq = torch.randn(4, 3, 5)
    assert torch.equal(
        functional.seq_to_ann_forward(x_seq, TurnOffNode()), TurnOffNode(step_mode="m")(x_seq)
    )


# ---- containers ----------------------------------------------------------------------------------


def containers(make):
    """The host's containers around a node that ``make`` makes, by name."""

    mode = ["s"] if host.GENERATION == 2 else []

    def add(y, x):
        return x + 0.5 * y

    return {
        "multi step": lambda: layer.MultiStepContainer(nn.Linear(6, 6), make()),
        "step mode": lambda: layer.StepModeContainer(True, *mode, nn.Linear(6, 6), make()),
        "element-wise": lambda: layer.ElementWiseRecurrentContainer(make(), add),
        "linear": lambda: layer.LinearRecurrentContainer(make(), 6, 6),
        "linear inside": lambda: layer.LinearRecurrentContainer(
            nn.Sequential(make(), nn.Linear(6, 4)), 6, 4
        ),
    }


def results(container, x_seq, step_mode):
    """Output of two calls and the gradients of all that is not theta."""
    if step_mode == "m" or isinstance(container, layer.MultiStepContainer):
        container.step_mode = "m"
    else:
        container.step_mode = "s"
    x_seq = x_seq.clone().requires_grad_()
    y_seq = torch.cat([run(container, x_seq[:3]), run(container, x_seq[3:])])
    (y_seq * torch.arange(1.0, 1 + y_seq.numel()).sin().view(y_seq.shape)).sum().backward()
    parameters = [p for name, p in container.named_parameters() if not name.endswith("theta")]
    return [y_seq, x_seq.grad, *(p.grad for p in parameters)]


@pytest.mark.parametrize("name", containers(None))
def test_containers_give_what_they_give_with_the_hosts_neuron(node_class, name, step_mode):
    start = nodes.make(node_class)._memories_rv["v"]
    made = with_learnable_imp(node_class)
    x_seq, found, weights = torch.randn(5, 3, 6) * 2, [], None
    for make in (
        lambda: made(imp_shape="layer", imp_init=(start, start)),
        lambda: nodes.make(node_class),
    ):
        container = containers(make)[name]()
        if weights is None:
            weights = copy.deepcopy(container.state_dict())
        else:
            container.load_state_dict({n: p for n, p in weights.items() if "theta" not in n})
        first = results(container, x_seq, step_mode)
        functional.reset_net(container)
        container.zero_grad()
        again = results(container, x_seq, step_mode)
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one, other)
        found.append(first)
    for ours, hosts in zip(*found, strict=True):
        torch.testing.assert_close(ours, hosts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", containers(None))
@pytest.mark.parametrize("contract", nodes.PLUGIN)
def test_containers_hold_every_neuron_of_the_plugin(contract, name):
    container = containers(nodes.PLUGIN[contract].make)[name]()
    container.step_mode = "m"
    x_seq = (torch.randn(4, 3, 6, 6) * 2).requires_grad_()
    y_seq = container(x_seq)
    (grad,) = torch.autograd.grad(y_seq.sum(), x_seq)
    assert grad.isfinite().all()
    if name == "element-wise" and (host.GENERATION == 1 or nodes.PLUGIN[contract].runs_on is None):
        # the container's memory is the node's output, a view if the node is one that 2.x runs
        functional.detach_net(container)
    functional.reset_net(container)
    functional.reset_net(container)
    assert torch.equal(container(x_seq), y_seq)


def test_a_turn_on_node_in_a_recurrent_container_by_the_equations():
    node = TurnOnNode(0.7, v_threshold=0.4)
    container = layer.ElementWiseRecurrentContainer(node, lambda y, x: x - 0.3 * y, "m")
    x_seq = torch.randn(6, 2, 5)
    u, y, wanted = torch.zeros(2, 5), torch.zeros(2, 5), []
    for x in x_seq:
        u = 0.7 * u + (x - 0.3 * y)
        y = (u >= 0.4).float()
        wanted.append(y)
    assert torch.equal(container(x_seq), torch.stack(wanted))


def test_one_level_in_a_recurrent_container_is_the_hosts_lif():
    x_seq, found = torch.randn(6, 2, 5) * 2, []
    for node in (MultiLevelFiringNode(thresholds=[1.0]), neuron.LIFNode(surrogate_function=Rect())):
        container = layer.ElementWiseRecurrentContainer(node, lambda y, x: x - y, "m")
        found.append(results(container, x_seq, "m"))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
