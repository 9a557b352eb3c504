"""TurnOffNode: a threshold without memory, one bit per element for the backward pass."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.neuron import TurnOffNode
from sj_ext.surrogate import ClosedRect, DSpike, Rect

SURROGATES = [
    Rect(),
    Rect(2.0),
    ClosedRect(),
    DSpike(),
    host.surrogate.Sigmoid(),
    host.surrogate.ATan(),
]


def oracle(x, v_threshold, surrogate_function):
    """Spikes and the gradient of their weighted sum, on the surrogate's autograd in float64."""
    x = x.detach().double().requires_grad_()
    spike = surrogate_function(x - v_threshold)
    weights = torch.arange(spike.numel(), dtype=torch.float64).view(spike.shape) / 7
    (spike * weights).sum().backward()
    return spike.detach(), x.grad, weights


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    alpha=st.floats(0.25, 4.0),
    v_threshold=st.floats(-1.0, 1.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_spikes_and_rectangular_gradient(shape, alpha, v_threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    spike = TurnOffNode(v_threshold, Rect(alpha=alpha))(x)
    expected, grad, weights = oracle(x, v_threshold, Rect(alpha=alpha))
    (spike * weights).sum().backward()
    assert torch.equal(spike, expected)
    torch.testing.assert_close(x.grad, grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("surrogate_function", SURROGATES, ids=str)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_any_surrogate_in_both_step_modes(surrogate_function, step_mode):
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64, requires_grad=True)
    spike = TurnOffNode(0.3, surrogate_function, step_mode)(x)
    expected, grad, weights = oracle(x, 0.3, surrogate_function)
    (spike * weights).sum().backward()
    assert torch.equal(spike, expected)
    torch.testing.assert_close(x.grad, grad, rtol=1e-12, atol=0)


def test_a_surrogate_in_non_spiking_mode_is_its_primitive():
    surrogate_function = Rect()
    surrogate_function.set_spiking_mode(False)
    x = torch.randn(20)
    torch.testing.assert_close(TurnOffNode(0.5, surrogate_function)(x), x.clamp(0, 1))


def test_a_potential_at_the_threshold_fires_in_training_and_in_evaluation():
    node = TurnOffNode(v_threshold=0.5)
    x = torch.tensor([0.5, math.nextafter(0.5, 1.0), 0.4999])
    for module in (node.train(), node.eval()):
        assert module(x).tolist() == [1.0, 1.0, 0.0]
        with torch.no_grad():
            assert module(x).tolist() == [1.0, 1.0, 0.0]
        assert module(x.clone().requires_grad_()).tolist() == [1.0, 1.0, 0.0]


def test_the_gradient_at_the_windows_edges_is_the_surrogates():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0], requires_grad=True)
    TurnOffNode(v_threshold=0.5)(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    x.grad = None
    TurnOffNode(0.5, ClosedRect())(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_that_of_the_input(dtype):
    x = torch.randn(33, dtype=dtype, requires_grad=True)
    spike = TurnOffNode()(x)
    assert spike.dtype == dtype
    assert torch.equal(spike, (x - 0.5 >= 0).to(dtype))
    spike.sum().backward()
    assert torch.equal(x.grad, ((x - 0.5).abs() < 0.5).to(dtype))


def test_one_bit_per_element_is_kept():
    x = torch.randn(4, 2, 16, 8, 8, requires_grad=True)
    _, memory = activation_memory(lambda: TurnOffNode(step_mode="m")(x))
    assert memory.saved == x.numel() * 4 + x.numel() // 8  # the spikes, and the bits


def test_before_a_convolution_it_holds_a_sixteenth_of_its_input_at_most():
    x = torch.randn(8, 16, 8, 8, requires_grad=True)
    conv = nn.Conv2d(16, 16, 3, padding=1)

    def saved(node):
        # the convolution keeps the spikes it is given whatever the neuron; only what is held beyond
        # that counts
        spikes = torch.zeros_like(x).requires_grad_()
        _, without = activation_memory(lambda: conv(spikes))
        _, memory = activation_memory(lambda: conv(node(x)))
        return memory.saved - without.saved - spikes.numel() * 4

    assert 0 < saved(TurnOffNode()) <= x.numel() * 4 / 16
    assert saved(lambda x: host.surrogate.Sigmoid()(x - 0.5)) >= x.numel() * 4


def test_nothing_is_packed_where_no_gradient_is_wanted():
    x = torch.randn(1000)
    for wants in (x, x.clone().requires_grad_()):
        with torch.no_grad():
            spike, memory = activation_memory(lambda wants=wants: TurnOffNode()(wants))
        assert memory.saved == spike.numel() * 4
        assert not spike.requires_grad


def test_reset_and_detach_change_nothing():
    node = TurnOffNode()
    net = nn.Sequential(nn.Linear(3, 4), node, nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(5, 3)
    y = net(x)
    host.functional.reset_net(net)
    host.functional.reset_net(net)
    host.functional.detach_net(net)
    assert torch.equal(net(x), y)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not list(node.memories())


def test_the_step_mode_is_set_over_a_network():
    net = nn.Sequential(TurnOffNode())
    host.functional.set_step_mode(net, "m")
    assert net[0].step_mode == "m"
    with pytest.raises(ValueError, match="step_mode"):
        TurnOffNode(step_mode="x")


def test_deepcopy_and_state_dict():
    node = TurnOffNode(0.25, DSpike(learnable=True))
    x = torch.randn(10, requires_grad=True)
    node(x).sum().backward()
    twin = copy.deepcopy(node)
    assert twin.v_threshold == 0.25
    assert torch.equal(twin(x), node(x))
    twin.load_state_dict(node.state_dict())
    assert TurnOffNode().state_dict() == {}


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_compiles_into_one_graph(step_mode):
    node = TurnOffNode(step_mode=step_mode)
    compiled = torch.compile(node, fullgraph=True)
    x = torch.randn(4, 3, 5, requires_grad=True)
    spike = compiled(x)
    assert torch.equal(spike, node(x))
    weights = torch.randn_like(x)
    (grad,) = torch.autograd.grad((spike * weights).sum(), x)
    (expected,) = torch.autograd.grad((node(x) * weights).sum(), x)
    assert torch.equal(grad, expected)


def test_autocast_takes_the_dtype_that_comes():
    net = nn.Sequential(nn.Linear(6, 8), TurnOffNode(0.0), nn.Linear(8, 3))
    x = torch.randn(7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net[0](x)
        spike = net[1](hidden)
        assert spike.dtype == torch.bfloat16
        assert torch.equal(spike, (hidden >= 0).to(torch.bfloat16))
        net[2](spike).float().sum().backward()
    assert net[0].weight.grad.dtype == torch.float32
    assert torch.isfinite(net[0].weight.grad).all()


def test_views_and_memory_formats():
    x = torch.randn(2, 3, 5, 4).to(memory_format=torch.channels_last)[..., ::2].requires_grad_()
    weights = torch.randn(2, 3, 5, 2)
    (TurnOffNode()(x) * weights).sum().backward()
    assert torch.equal(x.grad, weights * ((x - 0.5).abs() < 0.5))


def test_the_input_is_not_written():
    x = torch.randn(9)
    before = x.clone()
    TurnOffNode()(x)
    TurnOffNode()(x.requires_grad_())
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_empty_inputs_give_empty_outputs(shape):
    x = torch.randn(shape, requires_grad=True)
    spike = TurnOffNode(step_mode="m")(x)
    assert spike.shape == shape
    spike.sum().backward()
    assert x.grad.shape == shape


def test_a_second_backward_raises():
    spike = TurnOffNode()(torch.randn(5, requires_grad=True))
    spike.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        spike.sum().backward()


def test_double_backward_is_that_of_a_window():
    x = torch.randn(12, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(12, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad((TurnOffNode()(x) * scale).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(grad.square().sum(), scale)
    window = ((x - 0.5).abs() < 0.5).double()
    torch.testing.assert_close(twice, 2 * window * scale.detach())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_integers_are_refused(dtype):
    with pytest.raises(TypeError, match=f"floating-point dtype, got {dtype}"):
        TurnOffNode()(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("v_threshold", [math.nan, math.inf])
def test_a_threshold_that_is_not_finite_is_refused(v_threshold):
    with pytest.raises(ValueError, match="v_threshold must be a finite number, got"):
        TurnOffNode(v_threshold)


@pytest.mark.parametrize("v_threshold", ["0.5", None, True])
def test_a_threshold_that_is_no_number_is_refused(v_threshold):
    with pytest.raises(TypeError, match="v_threshold must be a number, got"):
        TurnOffNode(v_threshold)


def test_a_surrogate_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="surrogate_function"):
        TurnOffNode(0.5, 1.0)


def test_the_hosts_form_with_explicit_states():
    node = TurnOffNode(step_mode="m")
    x = torch.randn(2, 3, 4)
    (spike,), states = node.multi_step_functional_forward((x,), ())
    assert torch.equal(spike, node(x)) and states == ()
    (spike,), states = node.single_step_functional_forward((x[0],), ())
    assert torch.equal(spike, node(x)[0]) and states == ()
