"""Reversible blocks in depth: plain autograd's gradients, in memory to which depth adds bits."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.layer import SSA, ReversibleSequence, SpikingMLP
from sj_ext.layer.conv_bn import ConvBN
from sj_ext.layer.reversible_sequence.part import Readers, recorded, replayed, run_from_rest
from sj_ext.layer.spiking import lif
from sj_ext.neuron import IMPLIFNode, TurnOffNode, TurnOnNode

CHANNELS = 4
NEURONS = {
    "if": partial(host.neuron.IFNode, surrogate_function=host.surrogate.ATan()),
    "lif": lif(),
    "lif, reset in the graph": partial(host.neuron.LIFNode, v_reset=None),
    "plif": lif(node=host.neuron.ParametricLIFNode),
    "imp": partial(IMPLIFNode, imp_shape="layer"),
    "turn-on": TurnOnNode,
    "turn-off": TurnOffNode,
}


def residual(neuron, dropout=0.0):
    return nn.Sequential(
        neuron(),
        ConvBN(CHANNELS, CHANNELS, 3),
        nn.Dropout(dropout),
        neuron(),
        ConvBN(CHANNELS, CHANNELS),
    )


def sequence(make, depth=3, **arguments):
    seq = ReversibleSequence([(make(), make()) for _ in range(depth)], **arguments)
    host.functional.set_step_mode(seq, "m")
    return seq


def twins(make, dtype=torch.float64, **arguments):
    ours = sequence(make, **arguments).to(dtype)
    oracle = copy.deepcopy(ours)
    oracle.memory = "autograd"
    return ours, oracle


def gradients(net, x_seq, weight):
    """Output, gradients of the input and of all parameters, and buffers, after one pass."""
    x_seq = x_seq.clone().requires_grad_()
    y_seq = net(x_seq)
    learned = [p for p in net.parameters() if p.requires_grad]
    grads = torch.autograd.grad((y_seq * weight).sum(), [x_seq, *learned])
    return [y_seq.detach(), *grads, *(b.clone() for b in net.buffers())]


def assert_alike(found, wanted, limit):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit * float(b.abs().max() + 1))


def inputs(dtype=torch.float64, steps=4, channels=2 * CHANNELS):
    x_seq = 2 * torch.randn(steps, 3, channels, 5, 4, dtype=dtype)
    return x_seq, torch.randn_like(x_seq)


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_gradients_are_those_of_plain_autograd(neuron):
    ours, oracle = twins(partial(residual, neuron))
    x_seq, weight = inputs()
    for net in (ours, oracle):  # sizes that the first input fixes
        net(x_seq)
    oracle.load_state_dict(ours.state_dict())
    assert_alike(gradients(ours, x_seq, weight), gradients(oracle, x_seq, weight), 1e-10)


def test_attention_and_mlp_as_halves_of_a_block():
    blocks = [(SSA(CHANNELS, 2), SpikingMLP(CHANNELS, 8)) for _ in range(2)]
    ours = ReversibleSequence(blocks).double()
    host.functional.set_step_mode(ours, "m")
    oracle = copy.deepcopy(ours)
    oracle.memory = "autograd"
    x_seq, weight = inputs()
    assert_alike(gradients(ours, x_seq, weight), gradients(oracle, x_seq, weight), 1e-10)


def test_single_precision_over_many_blocks():
    ours, oracle = twins(partial(residual, lif()), torch.float32, depth=16)
    x_seq, weight = inputs(torch.float32)
    found, wanted = gradients(ours, x_seq, weight), gradients(oracle, x_seq, weight)
    size = torch.cat([b.flatten() for b in wanted]).norm()
    error = torch.cat([(a - b).flatten() for a, b in zip(found, wanted, strict=True)]).norm()
    assert error < 1e-5 * size


def test_dropout_is_drawn_again_and_the_generator_goes_on():
    ours, oracle = twins(partial(residual, lif(), 0.3))
    x_seq, weight = inputs()
    results, next_draws = [], []
    for net in (ours, oracle):
        net(x_seq)  # looks at the parts for the first time
        torch.manual_seed(7)
        results.append(gradients(net, x_seq, weight)[: -len(list(net.buffers()))])
        next_draws.append(torch.rand(3))
    assert_alike(*results, 1e-10)
    seeded = sequence(partial(residual, lif(), 0.3)).double()
    torch.manual_seed(7)
    y_seq = seeded(x_seq)
    before = torch.get_rng_state()
    y_seq.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_in_several_places_adds_up_its_gradients():
    shared = residual(lif())
    ours = ReversibleSequence([(shared, residual(lif())), (residual(lif()), shared)]).double()
    host.functional.set_step_mode(ours, "m")
    oracle = copy.deepcopy(ours)
    oracle.memory = "autograd"
    x_seq, weight = inputs()
    assert_alike(gradients(ours, x_seq, weight), gradients(oracle, x_seq, weight), 1e-10)


def test_frozen_parameters_and_an_input_without_gradient():
    ours, oracle = twins(partial(residual, lif()))
    x_seq, weight = inputs()
    results = []
    for net in (ours, oracle):
        for p in net.blocks[1].parameters():
            p.requires_grad_(False)
        learned = [p for p in net.parameters() if p.requires_grad]
        results.append(torch.autograd.grad((net(x_seq) * weight).sum(), learned))
    assert_alike(*results, 1e-10)


def test_depth_adds_bits():
    """1/32 of a float32 stream for each F and G, and nothing else."""
    x_seq, _ = inputs(torch.float32, channels=32)

    def held(depth):
        net = sequence(lambda: nn.Sequential(lif()(), ConvBN(16, 16, 3)), depth)
        net(x_seq)
        return activation_memory(lambda: net(x_seq))[1].saved

    stream = x_seq.numel() // 2
    assert (held(9) - held(1)) / (8 * 2) == stream / 8


def test_rebuilding_cannot_flip_a_spike():
    """On an input that is off by far more than rounding, a part computes what it computed."""
    part = residual(lif())
    host.functional.set_step_mode(part, "m")
    x = torch.randn(4, 3, CHANNELS, 5, 4)
    nodes = Readers().of(part, x)
    assert nodes == [part[0]]
    y, fired = recorded(nodes, lambda: run_from_rest(part, x))
    off = (x + 0.5 * torch.randn_like(x)).requires_grad_()
    again = replayed(nodes, fired, lambda: run_from_rest(part, off))
    assert torch.equal(again, y)
    assert not torch.equal(run_from_rest(part, off), y)
    again.sum().backward()
    assert off.grad.abs().sum() > 0


def test_swapped_neurons_are_found_again():
    net = sequence(partial(residual, lif()))
    x_seq, weight = inputs(torch.float32)
    net(x_seq)
    for block in net.blocks:
        block["f"][0] = host.neuron.IFNode(step_mode="m")
    oracle = copy.deepcopy(net)
    oracle.memory = "autograd"
    assert_alike(gradients(net, x_seq, weight), gradients(oracle, x_seq, weight), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_adds_up_streams_in_single_precision(dtype):
    """The oracle adds up alike: what differs is the rounding of streams that are taken apart."""
    net, oracle = twins(lambda: nn.Sequential(lif()(), ConvBN(CHANNELS, CHANNELS)), dtype, depth=6)
    x_seq, weight = inputs(dtype)
    results = []
    for each in (net, oracle):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            results.append(gradients(each, x_seq, weight))
    found, wanted = results
    assert found[0].dtype == dtype
    assert torch.equal(found[0], wanted[0])
    a, b = (torch.cat([g.float().flatten() for g in grads[1:]]) for grads in results)
    assert (a - b).norm() < 0.02 * b.norm()


def test_what_stops_a_backward_pass():
    net = sequence(partial(residual, lif()))
    x_seq, _ = inputs(torch.float32)
    y = net(x_seq.requires_grad_()).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    (grad,) = torch.autograd.grad(net(x_seq).square().sum(), x_seq, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_tensor_from_elsewhere_is_noticed():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.hidden = [factor]

        def forward(self, x):
            return x * self.hidden[0]

    factor = torch.ones(1, requires_grad=True)
    net = ReversibleSequence([(Scaled(factor), nn.Identity())])
    with pytest.raises(RuntimeError, match="no parameter"):
        net(torch.randn(2, 2, 4, requires_grad=True)).sum().backward()


def test_bad_input():
    pair = (nn.Identity(), nn.Identity())
    with pytest.raises(ValueError, match="blocks"):
        ReversibleSequence([])
    for wrong in ([nn.Identity()], [(nn.Identity(),)], [(nn.Identity(), 3)]):
        with pytest.raises(TypeError, match=r"blocks\[0\]"):
            ReversibleSequence(wrong)
    with pytest.raises(ValueError, match="memory"):
        ReversibleSequence([pair], memory="none")
    with pytest.raises(TypeError, match="dim"):
        ReversibleSequence([pair], dim=1.5)
    with pytest.raises(ValueError, match="even number of channels"):
        ReversibleSequence([pair])(torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="dim=2"):
        ReversibleSequence([pair])(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="keep the shape"):
        ReversibleSequence([(nn.Linear(3, 2), nn.Identity())])(torch.zeros(2, 2, 2, 3))
    single = ReversibleSequence([(host.neuron.IFNode(), nn.Identity())])
    with pytest.raises(ValueError, match="set_step_mode"):
        single(torch.zeros(2, 2, 4))
