"""What holds for every spiking transformer, whatever its attention."""

import functools

import pytest
import torch
from small_transformers import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sj_ext
from sj_ext import host
from sj_ext.analysis import synaptic_operations
from sj_ext.model.transformer import published_names

every_model = pytest.mark.parametrize("small", MODELS.values(), ids=MODELS)
single_step_models = pytest.mark.parametrize(
    "small",
    [s for s in MODELS.values() if s.single_step],
    ids=[n for n, s in MODELS.items() if s.single_step],
)


def neurons(net):
    return [m for m in net.modules() if isinstance(m, host.neuron.BaseNode)]


def fresh(net):
    """The network, at rest again."""
    host.functional.reset_net(net)
    return net


@every_model
def test_an_image_is_shown_t_times_and_a_sequence_as_it_is(small):
    net = small.net().eval()
    x = small.input()
    y = net(x)
    assert y.shape[1:] == (2, 5)
    host.functional.reset_net(net)
    torch.testing.assert_close(net(x.expand(net.T, *x.shape)), y)


@every_model
def test_a_sample_does_not_depend_on_its_neighbours(small):
    net = small.net().double().eval()  # rounding moves no potential over its threshold
    x = small.input(n=3).double()
    features, y = net.features(x), fresh(net)(x)
    other = small.input(n=1)[0].double()
    for replaced in (other, 8 * other, -8 * other.abs(), torch.zeros_like(other)):
        x[1] = replaced  # until the neighbour's own features, sums of spikes, are others
        changed = fresh(net).features(x)
        if not torch.equal(changed[:, 1], features[:, 1]):
            break
    assert not torch.equal(changed[:, 1], features[:, 1])
    torch.testing.assert_close(changed[:, [0, 2]], features[:, [0, 2]])
    torch.testing.assert_close(fresh(net)(x)[:, [0, 2]], y[:, [0, 2]])


@single_step_models
def test_step_by_step_equals_multi_step(small):
    net = small.net().double().eval()
    x_seq = small.input(steps=4).double()
    y_seq = net(x_seq)
    host.functional.reset_net(net)
    host.functional.set_step_mode(net, "s")
    torch.testing.assert_close(torch.stack([net(x) for x in x_seq]), y_seq)


@every_model
def test_every_neuron_fires_and_every_parameter_learns(small):
    net = small.net()
    net(small.input(n=4)).square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients.values())


@every_model
def test_every_product_with_a_weight_or_between_activations_is_counted(small):
    """Beside the layers, PyTorch itself says how often matrices are multiplied."""
    net, x = small.net().eval().requires_grad_(False), small.input(n=1)
    with FlopCounterMode(display=False) as flops:
        net(x)
    fresh(net)
    assert synaptic_operations(net, x, samples=1).dense == flops.get_total_flops() / 2


@every_model
def test_any_neuron_with_any_surrogate(small):
    factory = functools.partial(
        sj_ext.neuron.IMPLIFNode, tau=1.5, surrogate_function=host.surrogate.ATan()
    )
    net = small.net(spiking_neuron=factory)
    # the signed neurons of a transform are part of it
    kinds = {type(node) for node in neurons(net)} - {sj_ext.neuron.NegIFNode}
    assert kinds == {sj_ext.neuron.IMPLIFNode}
    assert len({id(node) for node in neurons(net)}) == len(neurons(net))
    net(small.input(n=4)).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


@every_model
def test_reset_brings_back_the_first_output(small):
    net = small.net().eval()
    x = small.input()
    y = net(x)
    host.functional.reset_net(net)
    assert torch.equal(net(x), y)


@every_model
def test_wrong_input_is_told_in_one_sentence(small):
    net = small.net().eval()
    c, h, w = small.shape
    with pytest.raises(ValueError, match=f"x must have shape .* with C = {c}"):
        net(torch.randn(2, c + 1, h, w))
    with pytest.raises(ValueError, match="x must have shape"):
        net(torch.randn(c, h, w))
    next(m for m in net.stem.modules() if isinstance(m, nn.Conv2d)).step_mode = "s"
    with pytest.raises(ValueError, match="step_mode must be one in the whole network"):
        net(small.input())


@every_model
def test_arguments_out_of_range(small):
    with pytest.raises(ValueError, match="T must be"):
        small.build(T=0)
    with pytest.raises(TypeError, match="T must be"):
        small.build(T=2.0)
    with pytest.raises(ValueError, match="num_classes must be"):
        small.build(num_classes=0)
    with pytest.raises(TypeError, match="spiking_neuron must be"):
        small.build(spiking_neuron=host.neuron.LIFNode())
    with pytest.raises(TypeError, match="spiking_neuron must be"):
        small.build(spiking_neuron=dict)


def test_names_of_a_program_are_asked_for_of_a_model_only():
    with pytest.raises(TypeError, match="published weights"):
        published_names(nn.Linear(2, 2), {})
