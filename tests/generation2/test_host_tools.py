"""SpikingJelly 2.x: memopt, op_counter, nir_exchange and monitors with our neurons in the network.

The oracle is the same network with the host's own neurons, which an IMP node at the reset value is.
"""

import copy

import nodes
import pytest
import torch
from spikingjelly.activation_based import memopt, monitor, nir_exchange, op_counter
from torch import nn

from sj_ext import host, swap_neurons
from sj_ext.neuron import TurnOffNode, with_learnable_imp

functional, layer, neuron = host.functional, host.layer, host.neuron
PAIRS = [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode]
COMPRESSORS = [
    memopt.BitSpikeCompressor,
    memopt.BooleanSpikeCompressor,
    memopt.Uint8SpikeCompressor,
    memopt.SparseSpikeCompressor,
]


def network(make):
    net = nn.Sequential(
        layer.Linear(6, 16), make(), layer.Linear(16, 16), make(), layer.Linear(16, 3)
    )
    with torch.no_grad():
        for linear in net[::2]:
            linear.weight.mul_(4)  # enough to fire
    functional.set_step_mode(net, "m")
    return net


def pair(node_class):
    """A network of the host's neurons, and the same with ours at the reset value."""
    hosts = network(node_class)
    ours = copy.deepcopy(hosts)
    start = hosts[1]._memories_rv["v"]
    swap_neurons(ours, {node_class: with_learnable_imp(node_class)}, imp_init=(start, start))
    for net in (ours, hosts):
        net(sequence())
        functional.reset_net(net)
    return ours, hosts


def sequence():
    return torch.randn(4, 5, 6) * 3


def train(net, x_seq):
    """Output and gradients by name, from the start of a sequence."""
    functional.reset_net(net)
    net.zero_grad()
    y_seq = net(x_seq)
    y_seq.square().sum().backward()
    names = [(n.replace("_checkpoint_wrapped_module.", ""), p) for n, p in net.named_parameters()]
    found = {"output": y_seq.detach(), **{name: p.grad.clone() for name, p in names}}
    functional.reset_net(net)
    return found


def assert_trained_alike(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(params=PAIRS, ids=lambda cls: cls.__name__)
def node_class(request):
    return request.param


@pytest.fixture(params=[name for name, made in nodes.PLUGIN.items() if not made.signed])
def contract(request):
    """Those that take [N, C], of spikes that are 1, as which the host's tools count them."""
    made = nodes.PLUGIN[request.param]
    return made if "Parametric" not in request.param else nodes.Contract(nodes.IMPParametricLIFNode)


# ---- monitor -------------------------------------------------------------------------------------


def test_before_the_first_step_a_monitor_sees_the_reset_value(node_class):
    for net in pair(node_class):
        watched = monitor.AttributeMonitor("v", True, net, node_class)
        net(sequence())
        assert watched["1"] == [net[1]._memories_rv["v"]]


# ---- memopt --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda cls: cls.__name__)
def test_every_compressor_keeps_what_a_neuron_sends(contract, compressor):
    spikes = network(contract.make)[:4](sequence()).detach()
    assert set(spikes.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0} and spikes.sum() > 0
    if spikes.max() > 1 and compressor is not memopt.Uint8SpikeCompressor:
        return  # numbers of spikes are no spikes to the others
    packing = compressor()
    assert torch.equal(packing.decompress(packing.compress(spikes)).to(spikes), spikes)


def test_checkpoints_change_no_gradient(contract):
    net, x_seq = network(contract.make), sequence()
    wanted = train(net, x_seq)
    for index, compressor in ((1, None), (2, memopt.BitSpikeCompressor()), (3, None)):
        if compressor is not None and contract.levels:
            continue  # a multi-level neuron sends numbers, which take more than a bit
        net[index] = memopt.checkpoint_module(net[index], compressor=compressor)
    assert_trained_alike(train(net, x_seq), wanted)


def test_optimize_memory_chooses_and_keeps_what_it_does_for_the_host(node_class):
    x_seq, chosen = sequence(), []
    for net in pair(node_class):
        wanted = train(net, x_seq)
        saving = memopt.optimize_memory(net, node_class, lambda net: net(x_seq), level=1)
        chosen.append([n for n, m in saving.named_modules() if hasattr(m, "checkpoint_fn")])
        assert_trained_alike(train(saving, x_seq), wanted)
    assert chosen[0] == chosen[1] == ["1", "3"]


# ---- op_counter ----------------------------------------------------------------------------------


COUNTERS = ["FlopCounter", "MACCounter", "ACCounter", "SynOpCounter", "NeuronStateCounter"]


def counts(net, x_seq, kind):
    counter = getattr(op_counter, kind)()
    with op_counter.DispatchCounterMode([counter]), torch.no_grad():
        net(x_seq)
    functional.reset_net(net)
    return counter


def by_module(counter):
    return counter.get_counts().items()


@pytest.mark.parametrize(
    ("kind", "running"),
    [*((kind, True) for kind in COUNTERS), *((kind, False) for kind in COUNTERS[:4])],
)
def test_counts_are_those_of_the_host(node_class, kind, running):
    """From the first step on; the state's first step counts as a state with us, not with them."""
    x_seq, found = sequence(), []
    for net in pair(node_class):
        if running:
            net(x_seq)
        counter = counts(net, x_seq, kind)
        own = {module: {op: n for op, n in ops.items() if n} for module, ops in by_module(counter)}
        found.append((counter.get_total(), own))
    assert found[0][0] > 0 and found[0] == found[1]


def test_synaptic_operations_are_spikes_times_fan_out(contract):
    net, x_seq = network(contract.make), sequence()
    net(x_seq), functional.reset_net(net)
    with torch.no_grad():
        one = net[:2](x_seq)
        two = net[2:4](one)
    functional.reset_net(net)
    by_module = counts(net, x_seq, "SynOpCounter").get_counts()
    assert one.sum() > 0 and two.sum() > 0
    spikes = {"2": one, "4": two}
    for name, spike in spikes.items():
        own = next(v for k, v in by_module.items() if k.rpartition(".")[2] == name)
        wanted = int(spike.sum()) * net[int(name)].out_features
        if spike.max() > 1:  # numbers of spikes are no spikes to the host's counter
            wanted = 0
        assert sum(own.values()) == wanted


# ---- nir_exchange --------------------------------------------------------------------------------


def test_the_host_exports_its_own_neurons_beside_the_plugin(node_class):
    net = network(node_class)
    functional.set_step_mode(net, "s")
    graph = nir_exchange.export_to_nir(net, sequence()[0])
    assert [type(node).__name__ for node in graph.nodes.values()].count("Affine") == 3


def test_a_neuron_that_nir_has_no_node_for_is_named_and_stays_as_it_was(contract):
    """NIR's neurons start from 0, and the host's table of conversions cannot be added to."""
    net = network(contract.make)
    functional.set_step_mode(net, "s")
    net(sequence()[0]), functional.reset_net(net)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError, match=type(net[1]).__name__):
        nir_exchange.export_to_nir(net, sequence()[0])
    functional.reset_net(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert isinstance(net[1], TurnOffNode) or net[1].v == net[1]._memories_rv["v"]
