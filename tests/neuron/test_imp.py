"""IMP nodes: the host's neuron to the bit at theta = reset value, and theta's right gradient."""

import copy
import itertools
import pickle

import nodes
import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sj_ext import host
from sj_ext.neuron import (
    IMPIFNode,
    IMPLIFNode,
    IMPParametricLIFNode,
    LearnableInitialPotential,
    MultiLevelFiringNode,
    TurnOnNode,
    with_learnable_imp,
)

neuron, functional, surrogate = host.neuron, host.functional, host.surrogate
PAIRS = {
    IMPIFNode: neuron.IFNode,
    IMPLIFNode: neuron.LIFNode,
    IMPParametricLIFNode: neuron.ParametricLIFNode,
}


def run(node, x, step_mode, weights):
    """Output and the gradients of the input and of every parameter but theta."""
    functional.set_step_mode(node, step_mode)
    x = x.clone().requires_grad_()
    y = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
    (y * weights).sum().backward()
    others = {name: p.grad for name, p in node.named_parameters() if name != "theta"}
    return y.detach(), x.grad, others


@pytest.mark.parametrize("imp_class", PAIRS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.3])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_equals_the_host_to_the_bit_at_the_reset_value(imp_class, step_mode, v_reset, detach_reset):
    start = 0.0 if v_reset is None else v_reset
    decays = [{}] if imp_class is IMPIFNode else [{"decay_input": d} for d in (True, False)]
    for kwargs, sg in itertools.product(decays, (surrogate.Sigmoid(), surrogate.ATan())):
        kwargs = dict(kwargs, v_reset=v_reset, detach_reset=detach_reset, surrogate_function=sg)
        ours = imp_class(**kwargs, imp_init=(start, start))
        hosts = PAIRS[imp_class](**kwargs)
        for training in (True, False):
            ours.train(training), hosts.train(training)
            functional.reset_net(ours), functional.reset_net(hosts)
            x = torch.randn(5, 3, 4, 6) + 0.5
            weights = torch.randn_like(x)
            if not training and host.GENERATION == 1 and imp_class is not IMPParametricLIFNode:
                # in evaluation 0.0.0.0.14 has no surrogate gradient: spikes only
                functional.set_step_mode(ours, "m"), functional.set_step_mode(hosts, "m")
                assert torch.equal(ours(x), hosts(x))
                continue
            y, grad_x, grads = run(ours, x, step_mode, weights)
            want_y, want_x, wants = run(hosts, x, step_mode, weights)
            assert torch.equal(y, want_y)
            assert 0 < y.sum() < y.numel()
            assert torch.equal(grad_x, want_x)
            assert torch.equal(ours.v, hosts.v)
            for name, want in wants.items():
                assert torch.equal(grads[name], want), name
            ours.zero_grad(), hosts.zero_grad()


def lif_spikes(x, v, tau, v_threshold, v_reset, alpha, decay_input):
    """LIF in the open: float64, Sigmoid surrogate through a straight-through difference."""
    rest = 0.0 if v_reset is None else v_reset
    spikes = []
    for step in x:
        v = v + (step - (v - rest)) / tau if decay_input else v - (v - rest) / tau + step
        soft = torch.sigmoid(alpha * (v - v_threshold))
        spike = (v >= v_threshold).to(v) + soft - soft.detach()
        v = v - spike * v_threshold if v_reset is None else spike * v_reset + (1 - spike) * v
        spikes.append(spike)
    return torch.stack(spikes)


@pytest.mark.parametrize("imp_shape", ["layer", "channel", "spatial", "neuron", (1, 3, 1, 5)])
@pytest.mark.parametrize("squash", [None, torch.sigmoid])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.2])
@pytest.mark.parametrize("decay_input", [True, False])
def test_gradient_of_theta_equals_a_float64_reference(imp_shape, squash, v_reset, decay_input):
    node = IMPLIFNode(
        3.0, decay_input, v_reset=v_reset, step_mode="m", imp_shape=imp_shape, imp_squash=squash
    )
    node.double()
    x = torch.randn(6, 4, 3, 2 if imp_shape != (1, 3, 1, 5) else 7, 5).double() + 0.4
    weights = torch.rand_like(x) + 0.1  # of one sign: no sum of them is 0 by chance
    (node(x) * weights).sum().backward()
    theta = node.theta.detach().clone().requires_grad_()
    v = (theta if squash is None else squash(theta)).expand(x.shape[1:])
    want = lif_spikes(x, v, 3.0, 1.0, v_reset, 4.0, decay_input)
    (want * weights).sum().backward()
    assert theta.grad.abs().max() > 1e-3
    torch.testing.assert_close(node.theta.grad, theta.grad, rtol=1e-6, atol=1e-9)


def test_gradient_of_theta_in_float32_is_as_good_as_its_rounding():
    node = IMPLIFNode(step_mode="m", v_reset=None)
    x = torch.randn(4, 8, 5, 3, 3) + 0.5
    weights = torch.randn_like(x)
    (node(x) * weights).sum().backward()
    theta = node.theta.detach().double().requires_grad_()
    spikes = lif_spikes(x.double(), theta.expand(x.shape[1:]), 2.0, 1.0, None, 4.0, True)
    (spikes * weights).sum().backward()
    error = (node.theta.grad - theta.grad).norm() / theta.grad.norm()
    assert error < 1e-6 * 10  # a sum of 360 float32 terms a channel


SHAPES = {
    "layer": {(2, 3, 4, 5): (1,), (2, 3): (1,)},
    "channel": {(2, 3, 4, 5): (1, 3, 1, 1), (2, 3): (1, 3), (2, 3, 4): (1, 3, 1)},
    "spatial": {(2, 3, 4, 5): (1, 1, 4, 5), (2, 3, 4): (1, 1, 4)},
    "neuron": {(2, 3, 4, 5): (1, 3, 4, 5), (2, 3): (1, 3)},
}


@pytest.mark.parametrize("imp_shape", SHAPES)
def test_theta_takes_its_sizes_from_the_first_input(imp_shape):
    for x_shape, theta_shape in SHAPES[imp_shape].items():
        node = IMPIFNode(imp_shape=imp_shape, imp_init=(0.4, 0.6))
        assert is_lazy(node.theta) == (imp_shape != "layer")
        node(torch.rand(x_shape))
        assert node.theta.shape == theta_shape
        assert node.theta.min() >= 0.4 and node.theta.max() <= 0.6


def test_channel_axis_of_a_token_sequence():
    node = IMPIFNode(channel_axis=-1)
    node(torch.rand(2, 7, 3))
    assert node.theta.shape == (1, 1, 3)
    node = IMPIFNode(imp_shape="spatial", channel_axis=2)
    node(torch.rand(2, 7, 3))
    assert node.theta.shape == (1, 7, 1)


def test_initial_potential_enters_on_the_first_step_after_a_reset_only():
    node = IMPIFNode(v_threshold=10.0, imp_shape="layer", imp_init=(0.5, 0.5), step_mode="m")
    x = torch.rand(3, 2, 4)
    node(x)
    torch.testing.assert_close(node.v, 0.5 + x.sum(0))
    node(x)
    torch.testing.assert_close(node.v, 0.5 + 2 * x.sum(0))
    functional.reset_net(node)
    node(x)
    torch.testing.assert_close(node.v, 0.5 + x.sum(0))


def test_a_later_sequence_gives_theta_no_gradient_after_detach():
    node = IMPLIFNode(step_mode="m", imp_shape="layer")
    node(torch.rand(2, 3, 4)).sum().backward()
    node.zero_grad()
    functional.detach_net(node)
    x = torch.rand(2, 3, 4, requires_grad=True)
    node(x).sum().backward()
    assert node.theta.grad is None and x.grad is not None


@pytest.mark.parametrize("imp_class", PAIRS, ids=lambda c: c.__name__)
def test_resets_change_no_parameter(imp_class):
    node = imp_class(step_mode="m")
    node(torch.rand(2, 3, 4))
    before = {name: p.detach().clone() for name, p in node.named_parameters()}
    for _ in range(3):
        functional.reset_net(node)
    node(torch.rand(2, 3, 4))
    functional.detach_net(node)
    functional.reset_net(node)
    functional.reset_net(node)
    for name, p in node.named_parameters():
        assert torch.equal(p, before[name]), name
    assert isinstance(node.v, float)


def test_truncated_bptt_equals_the_host_with_a_constant_start():
    ours = IMPLIFNode(imp_shape="layer", imp_init=(0.0, 0.0), step_mode="m")
    hosts = neuron.LIFNode(step_mode="m")
    for _ in range(3):
        x = torch.randn(4, 2, 5)
        (a, grad_a, _), (b, grad_b, _) = (run(n, x, "m", torch.ones_like(x)) for n in (ours, hosts))
        assert torch.equal(a, b) and torch.equal(grad_a, grad_b)
        functional.detach_net(ours), functional.detach_net(hosts)


def test_another_batch_size_without_a_reset_follows_the_host():
    ours = IMPIFNode(imp_shape="layer", imp_init=(0.25, 0.25), v_threshold=9.0, step_mode="m")
    ours(torch.rand(2, 3, 4))
    x = torch.rand(2, 5, 4)
    if host.GENERATION == 1:
        with pytest.raises(RuntimeError):
            ours(x)
    else:
        ours(x)
        torch.testing.assert_close(ours.v, 0.25 + x.sum(0))


def test_deepcopy_and_pickle_before_and_after_the_first_input():
    for cls in (IMPLIFNode, with_learnable_imp(neuron.QIFNode)):
        node = cls(step_mode="m")
        lazy = copy.deepcopy(node)
        x = torch.rand(2, 3, 4)
        node(x)
        functional.reset_net(node)
        for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
            assert type(twin) is cls
            assert twin.theta is not node.theta and torch.equal(twin.theta, node.theta)
            assert torch.equal(twin(x), node(x))
            functional.reset_net(node)
        assert is_lazy(lazy.theta)
        lazy(x)
        assert lazy.theta.shape == (1, 4)


def test_state_dict_goes_into_a_lazy_node_that_has_seen_no_input():
    trained = nn.Sequential(nn.Linear(4, 3), IMPLIFNode())
    trained(torch.rand(2, 4))
    fresh = nn.Sequential(nn.Linear(4, 3), IMPLIFNode())
    empty = copy.deepcopy(fresh).state_dict()
    assert is_lazy(empty["1.theta"])
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh[1].theta, trained[1].theta)
    fresh.load_state_dict(trained.state_dict())
    other = nn.Sequential(nn.Linear(4, 5), IMPLIFNode())
    other(torch.rand(2, 4))
    with pytest.raises(RuntimeError, match="size mismatch"):
        trained.load_state_dict(other.state_dict())
    still_lazy = nn.Sequential(nn.Linear(4, 3), IMPLIFNode())
    still_lazy.load_state_dict(empty)
    assert is_lazy(still_lazy[1].theta)


def test_optimizer_made_before_the_first_input_trains_theta():
    node = IMPLIFNode(step_mode="m")
    optimizer = torch.optim.Adam(node.parameters(), lr=0.1)
    node(torch.rand(3, 2, 4)).sum().backward()
    before = node.theta.detach().clone()
    optimizer.step()
    assert not torch.equal(node.theta, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("when", ["before", "after"])
def test_dtype_moves_with_the_module(dtype, when):
    node = IMPLIFNode(step_mode="m")
    if when == "after":
        node(torch.rand(2, 3, 4))
        functional.reset_net(node)
    node.to(dtype)
    y = node(torch.rand(2, 3, 4, dtype=dtype))
    y.sum().backward()
    assert node.theta.dtype == dtype and y.dtype == dtype and node.theta.grad.dtype == dtype


def test_autocast_keeps_theta_in_float32():
    net = nn.Sequential(nn.Linear(4, 3), IMPLIFNode())
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.rand(2, 4))
    y.float().sum().backward()
    assert net[1].theta.dtype == torch.float32
    assert net[1].theta.grad is not None


def test_store_v_seq_equals_the_host():
    x = torch.randn(5, 2, 3)
    ours = IMPLIFNode(step_mode="m", store_v_seq=True, imp_init=(0.0, 0.0))
    hosts = neuron.LIFNode(step_mode="m", store_v_seq=True)
    ours(x), hosts(x)
    assert torch.equal(ours.v_seq, hosts.v_seq)


def test_memory_is_never_a_view_of_theta():
    node = IMPIFNode(imp_shape="neuron")
    x = torch.rand(1, 3, 4)
    v = node.initial_potential(x)
    assert not v._is_view() and v.untyped_storage().data_ptr() != (
        node.theta.untyped_storage().data_ptr()
    )


@pytest.mark.parametrize("name", sorted(nodes.stateful_classes()))
def test_every_host_neuron_takes_an_initial_potential_or_says_why_not(name):
    cls = nodes.stateful_classes()[name]
    if cls in host.ONLINE_NEURONS:
        with pytest.raises(TypeError, match="online"):
            with_learnable_imp(cls)
        return
    made = with_learnable_imp(cls)
    assert made is with_learnable_imp(cls) and issubclass(made, cls)
    if not nodes.has_scalar_potential(cls):
        with pytest.raises(TypeError, match="scalar|required|missing"):
            nodes.make(made)
        return
    kwargs = nodes.ARGUMENTS.get(name, {})
    start = nodes.make(cls)._memories_rv["v"]
    for step_mode in nodes.make(cls).supported_step_mode():
        x = torch.randn(4, 3, 5) if step_mode == "m" else torch.randn(3, 5)
        ours = made(**kwargs, imp_shape="neuron", imp_init=(start, start))
        hosts = nodes.make(cls)
        for node in (ours, hosts):
            functional.set_step_mode(node, step_mode)
        ours.load_state_dict(hosts.state_dict(), strict=False)
        torch.manual_seed(1)
        y = ours(x)
        torch.manual_seed(1)
        assert torch.equal(y, hosts(x))
        assert isinstance(ours, LearnableInitialPotential)
        ours = made(**kwargs, imp_shape="neuron", imp_init=(0.1, 0.3))
        functional.set_step_mode(ours, step_mode)
        y = ours(x)
        outputs = torch.cat([y.flatten(), ours.v.flatten()])
        outputs.backward(torch.randn_like(outputs))
        assert ours.theta.grad is not None and ours.theta.grad.isfinite().all()


def test_some_host_neurons_can_and_some_cannot():
    can = [n for n, c in nodes.stateful_classes().items() if nodes.has_scalar_potential(c)]
    assert {"IFNode", "LIFNode", "ParametricLIFNode", "QIFNode", "EIFNode", "IzhikevichNode"} <= (
        set(can)
    )
    assert len(can) >= (7 if host.GENERATION == 1 else 20)


def test_multi_level_node_takes_an_initial_potential():
    node = with_learnable_imp(MultiLevelFiringNode)(step_mode="m", imp_init=(0.3, 0.3))
    node(torch.zeros(1, 2, 3))
    torch.testing.assert_close(node.v, torch.full((3, 2, 3), 0.15))


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"imp_shape": "pixel"}, ValueError, "imp_shape"),
        ({"imp_shape": (1, 0)}, ValueError, "imp_shape"),
        ({"imp_shape": 3}, TypeError, "imp_shape"),
        ({"imp_init": (float("nan"), 0.2)}, ValueError, "imp_init"),
        ({"imp_init": (0.2, float("inf"))}, ValueError, "imp_init"),
        ({"imp_init": (0.3, 0.2)}, ValueError, "imp_init"),
        ({"imp_init": 0.2}, TypeError, "imp_init"),
        ({"imp_init": "ab"}, TypeError, "imp_init"),
        ({"imp_init": (0.1,)}, ValueError, "imp_init"),
        ({"imp_squash": 2}, TypeError, "imp_squash"),
        ({"channel_axis": 0}, ValueError, "channel_axis"),
        ({"channel_axis": "1"}, TypeError, "channel_axis"),
        ({"imp_shapes": "layer"}, TypeError, "imp_shapes"),
    ],
)
def test_bad_argument_is_named(kwargs, error, words):
    with pytest.raises(error, match=words):
        IMPLIFNode(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "seen", "given"),
    [
        ({}, (2, 3, 4), (2, 5, 4)),  # channel count
        ({}, (2, 1, 4), (2, 5, 4)),  # which would broadcast
        ({}, (2, 3, 4), (2, 3)),  # rank
        ({"imp_shape": "neuron"}, (2, 3, 4), (2, 3, 5)),
        ({"imp_shape": "spatial"}, None, (2, 3)),
        ({}, None, (3,)),
        ({"imp_shape": (4, 1)}, None, (2, 3, 5)),
        ({"imp_shape": (1, 3, 1, 1)}, None, (2, 3)),
        ({"channel_axis": 3}, None, (2, 3, 5)),
    ],
)
def test_input_that_does_not_go_with_theta_is_refused(kwargs, seen, given):
    node = IMPLIFNode(**kwargs)
    if seen:
        node(torch.rand(seen))
        functional.reset_net(node)
    with pytest.raises(ValueError, match="imp_shape|channel_axis"):
        node(torch.rand(given))


def test_cupy_backend_runs_or_says_why_not():
    if host.GENERATION == 2:
        with pytest.raises(TypeError, match="backend"):
            IMPLIFNode(step_mode="m", backend="cupy")
        return
    with pytest.raises(ValueError, match="backend.*'m'|backend.*'s'"):
        IMPLIFNode(step_mode="s", backend="cupy")
    with pytest.raises(ValueError, match="backend"):
        IMPLIFNode(backend="tpu")
    with pytest.raises(RuntimeError, match="CuPy|CUDA"):
        IMPLIFNode(step_mode="m", backend="cupy")(torch.rand(2, 3, 4))


@pytest.mark.parametrize("node_class", [nn.Linear, neuron.IFNode(), 3, torch.relu])
def test_with_learnable_imp_refuses_what_is_no_neuron_class(node_class):
    with pytest.raises(TypeError, match="node_class"):
        with_learnable_imp(node_class)


def test_with_learnable_imp_of_an_imp_class_is_itself():
    assert with_learnable_imp(neuron.LIFNode) is IMPLIFNode
    assert with_learnable_imp(IMPLIFNode) is IMPLIFNode


def test_a_neuron_with_a_lazy_parameter_of_its_own_goes_through_checkpoints():
    made = with_learnable_imp(TurnOnNode)
    node, fresh = (made(decay_shape="channel", step_mode="m") for _ in range(2))
    node(torch.rand(3, 2, 5, 4))
    assert set(fresh.state_dict()) == {"theta", "decay"}
    fresh.load_state_dict(node.state_dict())
    assert torch.equal(fresh.theta, node.theta) and fresh.decay.shape == (5,)
