"""TurnOnNode: a leaky sum without reset, as a neuron of either host."""

import copy
import math

import pytest
import torch
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.neuron import TurnOnNode, with_learnable_imp
from sj_ext.ops.turn_on import naive
from sj_ext.surrogate import ClosedRect, DSpike, Rect


def node_of(**arguments):
    return TurnOnNode(**{"step_mode": "m", **arguments})


def twin(node, x_seq, v_init=None):
    """Spikes and potentials by the definition, with the node's decay."""
    decay = node.effective_decay
    if node.decay_shape == "channel":
        decay = decay.view(-1, *[1] * (x_seq.dim() - 3))
    v_init = torch.zeros_like(x_seq[0]) if v_init is None else v_init
    return naive.turn_on(x_seq, v_init, decay, node.v_threshold, node.surrogate_function)


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("decay_shape", ["layer", "channel"])
@pytest.mark.parametrize("surrogate_function", [Rect(), ClosedRect(), DSpike()], ids=str)
def test_both_step_modes_are_the_definition(surrogate_function, decay_shape, learnable):
    x = torch.randn(6, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    node = node_of(
        decay=-0.7,
        surrogate_function=surrogate_function,
        decay_shape=decay_shape,
        learnable_decay=learnable,
    ).double()
    single_node = node_of(
        decay=-0.7,
        surrogate_function=surrogate_function,
        decay_shape=decay_shape,
        learnable_decay=learnable,
    ).double()
    multi = node(x)
    host.functional.set_step_mode(single_node, "s")
    single = torch.stack([single_node(step) for step in x])
    expected, potentials = twin(node, x)
    assert torch.equal(multi, expected) and torch.equal(single, expected)
    assert torch.equal(node.v, potentials[-1]) and torch.equal(single_node.v, potentials[-1])
    weights = torch.randn_like(x)
    for spike, decay in ((multi, node.decay), (single, single_node.decay)):
        inputs = (x, decay) if learnable else (x,)
        got = torch.autograd.grad((spike * weights).sum(), inputs)
        want = torch.autograd.grad(
            (expected * weights).sum(), (x, node.decay) if learnable else (x,), retain_graph=True
        )
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_potential_at_the_threshold_fires_in_training_and_in_evaluation():
    x = torch.tensor([[0.25], [0.375], [0.1]])  # u = 0.25, 0.5, 0.35 exactly enough
    for mode in (True, False):
        node = node_of(decay=0.5, v_threshold=0.5).train(mode)
        assert node(x).flatten().tolist() == [0.0, 1.0, 0.0]
        with torch.no_grad():
            node.reset()
            assert node(x).flatten().tolist() == [0.0, 1.0, 0.0]


def test_two_forwards_carry_the_potential_over_and_reset_ends_it():
    x = torch.randn(8, 3, 5)
    node = node_of(decay=0.9)
    whole = node(x)
    node.reset()
    assert node.v == 0.0
    assert torch.equal(torch.cat((node(x[:3]), node(x[3:]))), whole)
    host.functional.reset_net(node)
    before = node.decay.detach().clone()
    host.functional.reset_net(node)
    assert torch.equal(node(x), whole)
    assert torch.equal(node.decay, before)


def test_detach_cuts_the_graph_between_forwards():
    x = torch.randn(2, 3, requires_grad=True)
    node = node_of(learnable_decay=False)
    node(x)
    assert node.v.requires_grad
    host.functional.detach_net(node)
    assert not node.v.requires_grad
    (node(torch.randn(2, 3)) + 0 * x).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("surrogate_function", [Rect(), ClosedRect(), DSpike()], ids=str)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_memories_are_no_views(surrogate_function, step_mode):
    node = TurnOnNode(surrogate_function=surrogate_function, step_mode=step_mode)
    for requires_grad in (False, True):
        node.reset()
        node(torch.randn(3, 2, 4, requires_grad=requires_grad))
        assert not node.v._is_view()
        node.detach()


@pytest.mark.parametrize("size", [1e-4, -1e-4])
def test_min_decay_bounds_the_size_and_lets_the_decay_leave_or_cross(size):
    node = node_of(decay=math.copysign(0.5, size))
    with torch.no_grad():
        node.decay.fill_(size)
    assert node.effective_decay.item() == pytest.approx(math.copysign(1e-3, size))
    x = torch.rand(2, 6) * 0.3 + 0.3
    node(x).sum().backward()
    # every window is open, so dS[1]/da = u[0] = x[0]: positive, whatever the sign of the decay
    torch.testing.assert_close(node.decay.grad, x[0].sum().view(1))
    optimizer = torch.optim.SGD(node.parameters(), lr=1.0)
    optimizer.step()
    assert node.decay.item() < -0.1
    assert node.effective_decay.item() == node.decay.item()


def test_decays_per_channel_learn_separately():
    x = torch.randn(5, 4, 3, 2, 2)
    node = node_of(decay=[0.2, -0.5, 1.1], decay_shape="channel")
    singles = [node_of(decay=decay) for decay in (0.2, -0.5, 1.1)]
    weights = torch.randn_like(x)
    spike = node(x)
    (spike * weights).sum().backward()
    for channel, single in enumerate(singles):
        alone = single(x[:, :, channel])
        assert torch.equal(alone, spike[:, :, channel])
        (alone * weights[:, :, channel]).sum().backward()
        torch.testing.assert_close(
            node.decay.grad[channel], single.decay.grad[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("learnable", [False, True])
def test_a_lazy_decay_takes_its_size_from_the_input_or_the_checkpoint(learnable):
    node = node_of(decay=0.3, decay_shape="channel", learnable_decay=learnable)
    fresh, also_fresh = copy.deepcopy(node), copy.deepcopy(node)
    also_fresh.load_state_dict(node.state_dict())  # one that is lazy still
    x = torch.randn(3, 2, 4, 5)
    spike = node(x)
    assert (node.decay == torch.tensor(0.3)).all()
    if learnable:
        assert node.decay.shape == (4,)
    trained = torch.rand(4) + 0.1
    node.load_state_dict({"decay": trained})
    assert torch.equal(node.decay, trained)
    fresh.load_state_dict(node.state_dict())
    assert torch.equal(fresh.decay, node.decay)
    assert isinstance(fresh.decay, nn.Parameter) == learnable == node.learnable_decay

    node.reset()
    assert torch.equal(fresh(x), node(x))
    assert torch.equal(also_fresh(x), spike)


def test_the_decay_is_a_parameter_or_a_buffer_and_follows_the_module():
    learned, fixed = TurnOnNode(), TurnOnNode(learnable_decay=False)
    assert [name for name, _ in learned.named_parameters()] == ["decay"]
    assert not list(fixed.parameters()) and [name for name, _ in fixed.named_buffers()] == ["decay"]
    assert fixed.double().decay.dtype == torch.float64
    groups = sj_ext.parameter_groups(nn.Sequential(nn.Linear(2, 2), learned), weight_decay=0.1)
    assert any(parameter is learned.decay for parameter in groups[1]["params"])


def test_no_drift_of_the_state_in_16_bits():
    x = torch.randn(40, 6, 5).bfloat16()
    node = node_of(decay=0.99)
    multi = node(x)
    assert multi.dtype == torch.bfloat16 and node.v.dtype == torch.float32
    single = TurnOnNode(decay=0.99)
    assert torch.equal(torch.stack([single(step) for step in x]), multi)
    assert torch.equal(single.v, node.v)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_autocast(step_mode):
    net = nn.Sequential(nn.Linear(6, 8), TurnOnNode(step_mode=step_mode), nn.Linear(8, 3))
    x = torch.randn(4, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spike = net[1](net[0](x))
        assert spike.dtype == torch.bfloat16
        net[2](spike).float().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


def test_store_v_seq():
    x = torch.randn(4, 3, 2, requires_grad=True)
    node = node_of(store_v_seq=True)
    node(x)
    _, potentials = twin(node, x)
    assert torch.equal(node.v_seq, potentials)
    (grad,) = torch.autograd.grad(node.v_seq.square().sum(), x)
    (expected,) = torch.autograd.grad(potentials.square().sum(), x)
    torch.testing.assert_close(grad, expected)
    node.store_v_seq = False
    node.reset()
    node(x)
    assert node.v_seq is None


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_deepcopy_after_reset_and_state_dict(step_mode):
    node = TurnOnNode(decay=0.6, step_mode=step_mode)
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        node(x)
    copied = copy.deepcopy(node)
    assert torch.equal(copied.v, node.v) and copied.v is not node.v
    assert torch.equal(copied(x), node(x))
    assert set(node.state_dict()) == {"decay"}
    other = TurnOnNode(decay=-0.2, step_mode=step_mode)
    other.load_state_dict(node.state_dict())
    node.reset()
    assert torch.equal(other(x), node(x))


@pytest.mark.parametrize("decay_shape", ["layer", "channel"])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_compiles_into_one_graph(step_mode, decay_shape):
    node = TurnOnNode(step_mode=step_mode, decay=[0.4, 0.5], decay_shape="channel")
    if decay_shape == "layer":
        node = TurnOnNode(step_mode=step_mode)
    eager = copy.deepcopy(node)
    compiled = torch.compile(node, fullgraph=True)
    x = torch.randn(3, 4, 2, 6)
    x = (x if step_mode == "m" else x[0]).requires_grad_()
    weights = torch.randn_like(x)
    for _ in range(2):  # from the scalar state, and from a tensor
        spike, expected = compiled(x), eager(x)
        assert torch.equal(spike, expected)
        torch.testing.assert_close(node.v, eager.v)
        got = torch.autograd.grad((spike * weights).sum(), (x, node.decay))
        want = torch.autograd.grad((expected * weights).sum(), (x, eager.decay))
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        node.detach()
        eager.detach()


def test_a_learnable_initial_potential():
    node = with_learnable_imp(TurnOnNode)(decay=0.8, step_mode="m", imp_shape="channel")
    x = torch.randn(5, 3, 4, 2)
    spike = node(x)
    v_init = node.theta.detach().clone().requires_grad_()
    expected, _ = twin(node, x, v_init.expand(3, 4, 2))
    assert torch.equal(spike, expected)
    weights = torch.randn_like(x)
    grads = torch.autograd.grad((spike * weights).sum(), (node.theta, node.decay))
    want = torch.autograd.grad((expected * weights).sum(), (v_init, node.decay))
    for one, other in zip(grads, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    theta = node.theta.detach().clone()
    host.functional.reset_net(node)
    host.functional.reset_net(node)
    assert torch.equal(node.theta, theta)
    assert torch.equal(node(x), spike)
    host.functional.detach_net(node)


def test_an_empty_sequence_starts_nothing_with_a_learnable_initial_potential():
    node = with_learnable_imp(TurnOnNode)(step_mode="m")
    x = torch.randn(4, 2, 3)
    assert node(x[:0]).shape == (0, 2, 3)
    spike = node(x)
    node.reset()
    assert torch.equal(node(x), spike)


@pytest.mark.parametrize("learnable", [False, True])
def test_before_a_convolution_it_holds_a_sixteenth_of_its_input_at_most(learnable):
    x = torch.randn(4, 2, 8, 8, 8, requires_grad=True)
    conv = nn.Conv2d(8, 8, 3, padding=1)

    def saved(node):
        # the convolution keeps the spikes whatever the neuron, and the last potential is no
        # activation: only what is held beyond them counts
        spikes = torch.zeros(8, 8, 8, 8).requires_grad_()
        _, without = activation_memory(lambda: conv(spikes))
        made = []  # x as a layer before would make it: nobody else holds it

        def run():
            made.append(None)
            return conv(node(x * 1.0).flatten(0, 1))

        _, memory = activation_memory(run)
        return memory.saved - without.saved - (x.numel() + x[0].numel()) * 4

    held = saved(node_of(learnable_decay=learnable))
    if learnable:
        # the input as well, and the initial potential
        assert x.numel() * 4 < held <= (x.numel() * 17 / 16 + x[0].numel()) * 4
    else:
        assert 0 < held <= x.numel() * 4 / 16


def test_a_change_of_shape_without_reset_follows_the_host():
    node = node_of()
    node(torch.randn(3, 2, 4))
    if host.GENERATION == 1:
        with pytest.raises(ValueError, match=r"shape \[2, 4\].*\[5, 4\].*reset"):
            node(torch.randn(3, 5, 4))
    else:
        x = torch.randn(3, 5, 4)
        assert torch.equal(node(x), twin(node, x)[0])


def test_swapping_keeps_the_spikes():
    net = nn.Sequential(nn.Linear(3, 4), host.neuron.IFNode(step_mode="m"))
    assert sj_ext.swap_neurons(net, {host.neuron.IFNode: TurnOnNode}, decay=0.3) == 1
    assert isinstance(net[1], TurnOnNode) and net[1].step_mode == "m"
    assert net(torch.randn(2, 5, 3)).shape == (2, 5, 4)


# Bad input


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
@pytest.mark.parametrize("surrogate_function", [Rect(), ClosedRect(), DSpike()], ids=str)
@pytest.mark.parametrize("decay_shape", ["layer", "channel"])
def test_empty_inputs_give_empty_outputs(shape, surrogate_function, decay_shape):
    if decay_shape == "channel" and shape[2] == 0:
        shape = (4, 0, 3, 2)
    node = node_of(surrogate_function=surrogate_function, decay_shape=decay_shape)
    x = torch.randn(shape, requires_grad=True)
    spike = node(x)
    assert spike.shape == shape
    (spike.sum() + 0 * x.sum()).backward()
    assert x.grad.shape == shape
    if shape[0] == 0:
        assert node.v == 0.0


@pytest.mark.parametrize("decay", [0, 0.0, math.nan, math.inf, -math.inf, 9e-4, -9e-4])
def test_decays_that_no_neuron_can_have(decay):
    with pytest.raises(ValueError, match="decay must"):
        TurnOnNode(decay)
    with pytest.raises(ValueError, match="decay must"):
        TurnOnNode([0.5, decay], decay_shape="channel")


@pytest.mark.parametrize(
    ("decay", "decay_shape"),
    [
        ([0.1, 0.2], "layer"),
        ([], "channel"),
    ],
)
def test_decays_of_the_wrong_size(decay, decay_shape):
    with pytest.raises(ValueError, match="decay must be"):
        TurnOnNode(decay, decay_shape=decay_shape)


@pytest.mark.parametrize("decay", ["half", None, [0.5, "half"], [[0.1], [0.3]], True, 1j])
def test_decays_that_are_no_numbers(decay):
    with pytest.raises(TypeError, match="decay must be"):
        TurnOnNode(decay)


def test_channels_that_do_not_go_with_the_decay():
    node = node_of(decay=[0.1, 0.2, 0.3], decay_shape="channel")
    with pytest.raises(ValueError, match=r"decay has 3 channels.*\[4, 5\] has 5 on axis 1"):
        node(torch.randn(2, 4, 5))
    with pytest.raises(ValueError, match=r"needs an input \[N, C, \*\]"):
        node(torch.randn(2, 3))


def test_the_smallest_decay_is_allowed():
    assert TurnOnNode(1e-3).effective_decay.item() == pytest.approx(1e-3)
    assert TurnOnNode(-1e-9, min_decay=0.0).effective_decay.item() == pytest.approx(-1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("length", [0, 3])
def test_integers_are_refused(dtype, step_mode, length):
    with pytest.raises(TypeError, match=f"floating-point dtype, got {dtype}"):
        TurnOnNode(step_mode=step_mode)(torch.ones(length, 2, dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"v_threshold": "a"}, TypeError, "v_threshold must be a number"),
        ({"v_threshold": math.nan}, ValueError, "v_threshold must be a finite number"),
        ({"min_decay": -1.0}, ValueError, "min_decay must be at least 0"),
        ({"min_decay": math.nan}, ValueError, "min_decay must be a finite number"),
        ({"decay_shape": "neuron"}, ValueError, "decay_shape must be one of"),
        ({"surrogate_function": 1.0}, TypeError, "surrogate_function must be"),
        ({"backend": "triton"}, ValueError, "backend of TurnOnNode"),
        ({"step_mode": "x"}, ValueError, "step_mode"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        TurnOnNode(**arguments)


def test_a_second_backward_raises():
    spike = node_of()(torch.randn(3, 4))
    spike.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        spike.sum().backward()


def test_the_hosts_form_with_explicit_states():
    node = node_of()
    x = torch.randn(4, 2, 3)
    (spike,), (v,) = node.functional_forward((x,), (0.0,))
    assert node.v == 0.0
    assert torch.equal(spike, node(x)) and torch.equal(v, node.v)
    (spike,), states = node.functional_forward((x[:0],), (v,))
    assert spike.shape == (0, 2, 3) and torch.equal(states[0], v)
