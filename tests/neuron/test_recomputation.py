"""Checkpointing: a stateful node computed again starts where it first did, or says why not.

The oracle is the same computation without checkpointing.
"""

import nodes
import pytest
import torch
from contracts import ready, twin_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_ext import host
from sj_ext.layer import TemporalReversible
from sj_ext.neuron import IMPLIFNode, TurnOnNode

functional = host.functional
SHAPE = 4, 3, 5, 2, 6


@pytest.fixture(params=nodes.PLUGIN)
def contract(request):
    return nodes.PLUGIN[request.param]


def gradients(node, layer, x_seq, run):
    """Of a sum in which every output counts differently; run(f, x) calls f, checkpointed or not."""
    leaf = x_seq.clone().requires_grad_()
    if node.step_mode == "m":
        y = run(lambda x: node(layer(x)), leaf)
    else:
        y = torch.stack([run(lambda x: node(layer(x)), x) for x in leaf])
    wave = torch.arange(1.0, 1 + y.numel()).sin().to(y).view(y.shape)
    parameters = [*layer.parameters(), *node.parameters()]
    for parameter in parameters:
        parameter.grad = None
    (y * wave).sum().backward()
    return [leaf.grad, *(p.grad for p in parameters)], dict(node._memories)


def assert_same(found, wanted):
    for one, other in zip(found[0], wanted[0], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    for name, value in wanted[1].items():
        torch.testing.assert_close(found[1][name], value)


def plain(f, x):
    return f(x)


def non_reentrant(f, x):
    return checkpoint(f, x, use_reentrant=False)


def reentrant(f, x):
    return checkpoint(f, x, use_reentrant=True)


def nested(f, x):
    return checkpoint(lambda z: checkpoint(f, z * 1, use_reentrant=False), x, use_reentrant=False)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("run", [non_reentrant, nested])
def test_gradients_are_those_without_checkpointing(contract, step_mode, run):
    node, layer = ready(contract, step_mode, torch.float64), nn.Linear(6, 6).double()
    other = twin_of(node)
    x_seq = torch.randn(SHAPE, dtype=torch.float64) * 2
    assert_same(gradients(node, layer, x_seq, run), gradients(other, layer, x_seq, plain))


def test_a_whole_sequence_in_a_reentrant_checkpoint(contract):
    node, layer = ready(contract, "m", torch.float64), nn.Linear(6, 6).double()
    other = twin_of(node)
    x_seq = torch.randn(SHAPE, dtype=torch.float64) * 2
    assert_same(gradients(node, layer, x_seq, reentrant), gradients(other, layer, x_seq, plain))


@pytest.mark.parametrize("kind", [non_reentrant, reentrant])
def test_a_loop_over_time_with_a_reset_within_the_checkpoint(contract, kind):
    node = ready(contract, "s", torch.float64)
    other = twin_of(node)
    results = []
    for each, run in ((node, kind), (other, plain)):

        def steps(x_seq, each=each):
            functional.reset_net(each)
            return torch.stack([each(x) for x in x_seq])

        x_seq = torch.linspace(-1, 3, 90, dtype=torch.float64).view(3, 3, 5, 1, 2)
        x_seq = x_seq.expand(3, 3, 5, 2, 2).repeat(1, 1, 1, 1, 3).requires_grad_()
        y = run(steps, x_seq)
        (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        results.append(x_seq.grad)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("make", [IMPLIFNode, TurnOnNode])
def test_a_reentrant_checkpoint_that_would_cut_a_gradient_is_refused(make):
    for step_mode in ("s", "m"):
        node, x = make(step_mode=step_mode), torch.randn(3, 2, 4, requires_grad=True)
        reentrant(node, x)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            reentrant(node, x)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            node(x)
        functional.detach_net(node)
        reentrant(node, x).sum().backward()
        functional.reset_net(node)
        reentrant(node, x).sum().backward()


@pytest.mark.parametrize("make", [IMPLIFNode, TurnOnNode])
def test_a_checkpoint_within_a_reentrant_one_does_not_hide_the_border(make):
    def both(f, x):
        return checkpoint(lambda z: non_reentrant(f, z * 1), x, use_reentrant=True)

    node, x = make(step_mode="s"), torch.randn(2, 3, 4)
    both(node, x[0].clone().requires_grad_())
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        both(node, x[1].clone().requires_grad_())
    functional.set_step_mode(node, "m")
    results = []
    for run in (both, plain):
        functional.reset_net(node)
        results.append(gradients(node, nn.Identity(), x, run))
    assert_same(*results)


def test_the_graph_may_be_run_backwards_twice():
    node, layer = TurnOnNode(step_mode="s"), nn.Linear(4, 4)
    x = torch.randn(5, 2, 4)
    y = torch.stack([non_reentrant(lambda z: node(layer(z)), step) for step in x]).square().sum()
    y.backward(retain_graph=True)
    first = layer.weight.grad.clone()
    y.backward()
    torch.testing.assert_close(layer.weight.grad, 2 * first)


def test_the_real_state_is_left_alone_and_the_next_call_goes_on():
    node, layer = IMPLIFNode(step_mode="m", store_v_seq=True), nn.Linear(4, 4)
    x = torch.randn(5, 2, 4)
    y = non_reentrant(lambda z: node(layer(z)), x)
    v, v_seq = node.v, node.v_seq
    y.sum().backward()
    assert node.v is v and node.v_seq is v_seq


def test_a_reset_between_forward_and_backward_does_no_harm():
    node, layer, x = TurnOnNode(step_mode="m"), nn.Linear(4, 4), torch.randn(5, 2, 4)
    grads = []
    for run in (plain, non_reentrant):
        run(lambda z: node(layer(z)), x)  # a state to start from
        functional.detach_net(node)
        y = run(lambda z: node(layer(z)), x)
        functional.reset_net(node)
        layer.zero_grad()
        y.sum().backward()
        grads.append(layer.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_another_way_of_computing_again_is_refused_where_the_state_is_not_known():
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, node):
            ctx.node, ctx.x = node, x.detach()
            with torch.no_grad():
                return node(x)

        @staticmethod
        def backward(ctx, grad):
            x = ctx.x.requires_grad_()
            with torch.enable_grad():
                return torch.autograd.grad(ctx.node(x), x, grad)[0], None

    y = Again.apply(torch.randn(3, 2, 4, requires_grad=True), TurnOnNode(step_mode="m"))
    with pytest.raises(RuntimeError, match="state before its first run is not known"):
        y.sum().backward()


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, below, above):
        current = self.below(below)
        return current if above is None else current + self.above(above)


@pytest.mark.parametrize("memory", ["reversible", "autograd"])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_cells_under_checkpointing(memory, step_mode):
    torch.manual_seed(0)
    cell = TemporalReversible([Level(), Level()], [0.5, 0.7], memory=memory, step_mode=step_mode)
    x_seq, layer = torch.randn(4, 3, 6), nn.Linear(6, 6)
    results = []
    for run in (plain, non_reentrant):
        functional.reset_net(cell)
        results.append(gradients(cell, layer, x_seq, run))
    assert_same(results[1], results[0])


def test_the_wrapper_of_fsdp():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        checkpoint_wrapper,
    )

    x, grads = torch.randn(5, 2, 4), []
    net = nn.Sequential(nn.Linear(4, 4), IMPLIFNode(step_mode="m", imp_shape=(1,)))
    wrapped = [
        checkpoint_wrapper(net, impl)
        for impl in (CheckpointImpl.NO_REENTRANT, CheckpointImpl.REENTRANT)
    ]
    for run in (net, *wrapped):
        functional.reset_net(net)
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        (run(leaf) * torch.arange(5.0).view(5, 1, 1)).sum().backward()
        grads.append((leaf.grad, net[0].weight.grad.clone()))
    for other in grads[1:]:
        for one, wanted in zip(other, grads[0], strict=True):
            torch.testing.assert_close(one, wanted)
