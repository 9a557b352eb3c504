"""Multi-level firing: K LIF neurons on one input, summed."""

import pytest
import torch

from sj_ext import host
from sj_ext.functional import multi_level_firing_step
from sj_ext.neuron import MultiLevelFiringNode
from sj_ext.surrogate import Rect

functional, neuron = host.functional, host.neuron


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.4])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_equals_the_sum_of_the_hosts_lif_neurons(v_reset, decay_input, step_mode, detach_reset):
    thresholds = (0.4, 1.0, 2.2)
    kwargs = {"v_reset": v_reset, "decay_input": decay_input, "detach_reset": detach_reset}
    node = MultiLevelFiringNode(3.0, **kwargs, step_mode="m", thresholds=thresholds)
    levels = [
        neuron.LIFNode(3.0, v_threshold=t, surrogate_function=Rect(), step_mode="m", **kwargs)
        for t in thresholds
    ]
    x = (torch.randn(6, 2, 3, 5).double() + 1) * 2
    node.double()
    ours, hosts = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = sum(level(hosts) for level in levels)
    functional.set_step_mode(node, step_mode)
    got = node(ours) if step_mode == "m" else torch.stack([node(step) for step in ours])
    assert torch.equal(got, want)
    assert want.max() == 3 and want.min() == 0
    weights = torch.randn_like(want)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(ours.grad, hosts.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(node.v, torch.stack([level.v for level in levels]))


def test_one_level_is_a_lif_neuron():
    x = torch.randn(4, 2, 3) + 1
    node = MultiLevelFiringNode(step_mode="m", thresholds=[1.0], store_v_seq=True)
    lif = neuron.LIFNode(step_mode="m", surrogate_function=Rect(), store_v_seq=True)
    assert torch.equal(node(x), lif(x))
    torch.testing.assert_close(node.v_seq[:, 0], lif.v_seq)


def test_default_levels_stand_one_apart():
    assert MultiLevelFiringNode(v_threshold=0.6).thresholds == (0.6, 1.6, 2.6)
    assert MultiLevelFiringNode(thresholds=(0.3, 0.9)).v_threshold == 0.3


def test_state_carries_over_resets_and_detaches():
    node = MultiLevelFiringNode(step_mode="m", surrogate_function=Rect())
    x = torch.rand(4, 2, 3)
    whole = node(x)
    functional.reset_net(node)
    assert isinstance(node.v, float)
    halves = [node(x[:2].requires_grad_()), node(x[2:])]
    assert torch.equal(torch.cat(halves), whole)
    functional.detach_net(node)
    assert not node.v.requires_grad


def test_step_function_alone():
    spikes, v = multi_level_firing_step(
        torch.tensor([1.5, 0.2]), torch.zeros(2, 2), 2.0, False, (0.5, 1.0), None, Rect()
    )
    assert spikes.tolist() == [2.0, 0.0]
    torch.testing.assert_close(v, torch.tensor([[1.0, 0.2], [0.5, 0.2]]))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"thresholds": ()}, "thresholds"),
        ({"thresholds": (1.0, 1.0)}, "thresholds"),
        ({"thresholds": (2.0, 1.0)}, "thresholds"),
        ({"tau": 1.0}, "tau"),
        ({"tau": float("nan")}, "tau"),
        ({"step_mode": "x"}, "step_mode"),
    ],
)
def test_bad_argument_is_named(kwargs, words):
    with pytest.raises(ValueError, match=words):
        MultiLevelFiringNode(**kwargs)


@pytest.mark.parametrize("name", ["thresholds", "tau", "v_threshold", "v_reset", "decay_input"])
def test_an_argument_of_the_wrong_kind_is_named(name):
    with pytest.raises(TypeError, match=name):
        MultiLevelFiringNode(**{name: "a"})
