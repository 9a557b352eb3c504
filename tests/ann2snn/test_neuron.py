"""ConversionIFNode does what the equations say, in both step modes, as a node of the hosts."""

import copy
import pickle

import pytest
import torch
from ann2snn import oracle

from sj_ext import host, swap_neurons
from sj_ext.ann2snn import ConversionIFNode
from sj_ext.neuron import with_learnable_imp

CASES = {
    "soft": {},
    "hard": {"reset": "hard"},
    "half": {"v_init": 0.5},
    "shift": {"shift": 1 / 16},
    "leaky": {"negative": ("leaky", 0.1), "v_init": 0.5},
    "counted": {"negative": ("counted", 1e-3), "v_init": 0.5},
    "together": {"negative": ("counted", 0.01), "v_init": 0.3, "shift": 0.05},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_spikes_are_those_of_the_equations(options, step_mode):
    theta = 0.7
    z = torch.randn(12, 3, 4, 5, dtype=torch.float64) + 0.2
    node = ConversionIFNode(theta, step_mode=step_mode, **options).double()
    for _ in range(2):  # and again after a reset
        spikes = node(z) if step_mode == "m" else torch.stack([node(step) for step in z])
        told = {k: v for k, v in options.items() if k in ("reset", "negative")}
        wanted = oracle.neuron(
            z,
            theta,
            v0=theta * options.get("v_init", 0.0),
            delta=theta * options.get("shift", 0.0),
            **told,
        )
        torch.testing.assert_close(theta * spikes, wanted)
        host.functional.reset_net(node)


@pytest.mark.parametrize("v_init", [0.0, 0.5])
def test_a_constant_current_gives_the_staircase(v_init):
    z, theta, steps = torch.rand(1000, dtype=torch.float64) * 3 - 1, 1.3, 9
    node = ConversionIFNode(theta, v_init, step_mode="m").double()
    count = node(z.expand(steps, -1)).sum(0)
    wanted = (steps * z / theta + v_init).floor().clamp(0, steps)
    assert torch.equal(count, wanted)


def test_negative_spikes_give_the_leaky_slope():
    z, slope, steps = -torch.rand(50, dtype=torch.float64), 0.1, 20000
    node = ConversionIFNode(1.0, negative=("leaky", slope), step_mode="m").double()
    mean = node(z.expand(steps, -1)).mean(0)
    torch.testing.assert_close(mean, slope * z, atol=2e-4, rtol=0)


def test_taken_back_spikes_never_outnumber_those_sent():
    z = torch.randn(40, 200)
    node = ConversionIFNode(negative="counted", step_mode="m")
    spikes = node(z)
    assert bool((spikes == -1).any())
    assert bool((spikes.cumsum(0) >= 0).all())


def test_initial_potential_per_channel_and_neuron_comes_back_after_a_reset():
    for shape in [(4, 1, 1), (4, 5, 6)]:
        v_init = torch.rand(shape)
        node = ConversionIFNode(2.0, v_init, step_mode="m")
        x = torch.zeros(3, 2, 4, 5, 6)
        for _ in range(2):
            node(x)
            torch.testing.assert_close(node.v, (2 * v_init).expand(2, 4, 5, 6))
            host.functional.reset_net(node)
            host.functional.reset_net(node)
        torch.testing.assert_close(node.v_init, v_init)


def test_a_learned_potential_gets_a_gradient_and_the_other_way_through_swap():
    x = torch.rand(6, 2, 3)
    node = ConversionIFNode(v_init="learn", step_mode="m")
    node(x).sum().backward()
    assert node.v_init.grad is not None and node.v_init.item() == 0.5
    net = torch.nn.Sequential(ConversionIFNode(step_mode="m"))
    learned = with_learnable_imp(ConversionIFNode)
    swap_neurons(net, {ConversionIFNode: learned}, imp_init=(0.5, 0.5))
    half = ConversionIFNode(v_init=0.5, step_mode="m")
    assert torch.equal(net(x), half(x))
    net(x).sum().backward()
    assert net[0].theta.grad is not None


def test_one_value_per_neuron_fixes_the_resolution():
    node = ConversionIFNode(v_init=torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match=r"v_init of shape \(3, 4, 4\)"):
        node(torch.rand(2, 3, 8, 8))


def test_copies_pickles_and_state_dicts_keep_everything():
    node = ConversionIFNode(0.5, torch.rand(3), negative=("counted", 0.01), shift=torch.rand(3))
    x = torch.randn(5, 2, 3)
    wanted = torch.stack([node(step) for step in x])
    host.functional.reset_net(node)
    empty = ConversionIFNode(0.5, torch.zeros(3), negative=("counted", 0.01), shift=torch.zeros(3))
    empty.load_state_dict(node.state_dict())
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node)), empty):
        assert torch.equal(torch.stack([other(step) for step in x]), wanted)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_gradients_are_the_same_in_both_step_modes(options):
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    grads = []
    for mode in ("s", "m"):
        node = ConversionIFNode(step_mode=mode, **options).double()
        leaf = x.clone().requires_grad_()
        y = node(leaf) if mode == "m" else torch.stack([node(step) for step in leaf])
        wave = torch.arange(y.numel(), dtype=y.dtype).sin().view_as(y)
        grads.append(torch.autograd.grad((y * wave).sum(), leaf)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"reset": "weak"}, ValueError, "reset"),
        ({"negative": ("leaky", 0.1), "reset": "hard"}, ValueError, "negative"),
        ({"negative": ("leaky", 0.0)}, ValueError, "slope"),
        ({"negative": ("other", 0.1)}, ValueError, "negative"),
        ({"negative": 0.1}, TypeError, "negative"),
        ({"v_init": "half"}, ValueError, "v_init"),
        ({"v_init": None}, TypeError, "v_init"),
        ({"v_threshold": 0.0}, ValueError, "v_threshold"),
        ({"v_threshold": "1"}, TypeError, "v_threshold"),
        ({"shift": float("nan")}, ValueError, "shift"),
    ],
)
def test_wrong_arguments_are_named(options, error, told):
    with pytest.raises(error, match=told):
        ConversionIFNode(**options)
