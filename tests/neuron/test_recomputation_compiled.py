"""A compiled network in an eager checkpoint: right gradients, also if it was compiled before."""

import nodes
import pytest
import torch
from contracts import assert_same, ready, twin_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_ext import host
from sj_ext.neuron import IMPLIFNode, MultiLevelFiringNode, TurnOnNode

functional = host.functional
SHAPE = 2, 2, 3, 4

pytestmark = pytest.mark.filterwarnings("ignore")


def non_reentrant(f, x):
    return checkpoint(f, x, use_reentrant=False)


def reentrant(f, x):
    return checkpoint(f, x, use_reentrant=True)


def plain(f, x):
    return f(x)


def gradients(net, f, x_seq, run):
    """Of a sum in which every output counts differently; run(f, x) calls f, checkpointed or not."""
    functional.reset_net(net)
    net.zero_grad()
    leaf = x_seq.clone().requires_grad_()
    y = run(f, leaf) if net[1].step_mode == "m" else torch.stack([run(f, x) for x in leaf])
    (y * torch.arange(1.0, 1 + y.numel()).sin().view(y.shape)).sum().backward()
    state = [v for v in net[1]._memories.values() if isinstance(v, torch.Tensor)]
    return [leaf.grad, *(p.grad for p in net.parameters()), *(v.detach() for v in state)]


def network(make, step_mode):
    """A network and its twin, to be compiled."""
    node = make(step_mode=step_mode)
    with torch.no_grad():
        node(torch.zeros(SHAPE if step_mode == "m" else SHAPE[1:]))
    functional.reset_net(node)
    net = nn.Sequential(nn.Linear(4, 4), node, nn.Linear(4, 4))
    return net, twin_of(net)


@pytest.mark.parametrize(
    ("make", "step_mode", "run"),
    [
        (IMPLIFNode, "s", non_reentrant),
        (IMPLIFNode, "m", reentrant),
        (TurnOnNode, "m", non_reentrant),
        (MultiLevelFiringNode, "m", reentrant),
    ],
)
def test_gradients_are_those_of_the_plain_network(make, step_mode, run):
    net, other = network(make, step_mode)
    compiled, x_seq = torch.compile(net, backend="eager"), 2 * torch.randn(SHAPE)
    wanted = gradients(other, other, x_seq, plain)
    assert any(g is not None and g.abs().sum() > 0 for g in wanted)
    # also where a graph is there already, from outside the checkpoint and from inside
    for way in (plain, run, plain):
        assert_same(gradients(net, compiled, x_seq, way), wanted)


@pytest.mark.parametrize("name", [n for n, c in nodes.PLUGIN.items() if c.potential])
def test_every_node_compiled_alone_in_a_checkpointed_function(name):
    node = ready(nodes.PLUGIN[name], shape=SHAPE)
    net = nn.Sequential(nn.Linear(4, 4), node)
    other, x_seq = twin_of(net), 2 * torch.randn(SHAPE)
    compiled = torch.compile(node, backend="eager")
    wanted = gradients(other, other, x_seq, plain)
    found = gradients(net, lambda x: compiled(net[0](x)), x_seq, non_reentrant)
    assert_same(found, wanted)


def test_inductor_too():
    net, other = network(TurnOnNode, "m")
    compiled, x_seq = torch.compile(net), 2 * torch.randn(SHAPE)
    wanted = gradients(other, other, x_seq, plain)
    for run in (plain, non_reentrant):
        assert_same(gradients(net, compiled, x_seq, run), wanted)


def test_a_step_at_a_time_in_a_reentrant_one_is_refused_as_without_a_compiler():
    net, _ = network(TurnOnNode, "s")
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradients(net, compiled, 2 * torch.randn(SHAPE), reentrant)


def test_a_checkpoint_within_the_compiled_function():
    net, other = network(TurnOnNode, "m")
    x_seq = 2 * torch.randn(SHAPE)
    wanted = gradients(other, other, x_seq, plain)
    compiled = torch.compile(lambda x: non_reentrant(net, x), backend="aot_eager")
    assert_same(gradients(net, compiled, x_seq, plain), wanted)
