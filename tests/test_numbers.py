"""NaN, infinities, denormals, overflow and long sequences: as plain PyTorch and the host have them.

A potential that is not a number is not at the threshold: no spike, and it stays what it is. What
must not happen is that a gradient is a number where plain autograd has none.
"""

import copy
import math

import pytest
import torch
from cells import LinearLevel
from contracts import assert_same
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sj_ext import host
from sj_ext.functional import (
    lts_cross_entropy,
    sdt_cross_entropy,
    tet_cross_entropy,
    tet_s_cross_entropy,
)
from sj_ext.layer import TemporalReversible
from sj_ext.neuron import MultiLevelFiringNode, TurnOffNode, TurnOnNode, with_learnable_imp
from sj_ext.ops.turn_on import naive
from sj_ext.surrogate import DSpike, Rect

functional, neuron, surrogate = host.functional, host.neuron, host.surrogate
STRANGE = [math.nan, math.inf, -math.inf]
WINDOWS = [Rect(), Rect(alpha=2.0), DSpike(), surrogate.Sigmoid(), surrogate.ATan()]
HOSTS = [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, neuron.QIFNode]


def strewn(shape, values=STRANGE, dtype=torch.float32, every=7):
    """Normal numbers with strange ones among them."""
    x = torch.randn(shape, dtype=torch.float64) * 1.5
    places = torch.randperm(x.numel())[: max(1, x.numel() // every)]
    x.view(-1)[places] = torch.tensor(values * len(places), dtype=x.dtype)[: len(places)]
    return x.to(dtype).requires_grad_()


def outputs_and_gradients(node, x_seq, weights):
    y_seq = node(x_seq)
    learned = [p for name, p in node.named_parameters() if name != "theta"]
    return [y_seq, node.v, *torch.autograd.grad((y_seq * weights).sum(), [x_seq, *learned])]


# ---- neurons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_class", HOSTS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("v_reset", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_imp_nodes_carry_what_the_hosts_carry(node_class, v_reset, dtype):
    """NaN, infinities, denormals, and potentials that the dtype cannot hold."""
    kwargs = {"v_reset": None} if v_reset == "soft" else {}
    if node_class is neuron.QIFNode and v_reset == "soft":
        kwargs = {"v_reset": -0.5}
    hosts = node_class(step_mode="m", **kwargs)
    start = hosts._memories_rv["v"]
    ours = with_learnable_imp(node_class)(step_mode="m", imp_init=(start, start), **kwargs)
    huge = float(torch.finfo(dtype).max) / 2
    x_seq = strewn((6, 5, 4), [*STRANGE, 1e-41, huge, huge, -huge], dtype, every=3)
    weights = torch.randn_like(x_seq)
    for node in (ours, hosts):
        node.to(dtype)
    found = outputs_and_gradients(ours, x_seq, weights)
    wanted = outputs_and_gradients(hosts, x_seq, weights)
    assert not wanted[1].isfinite().all()
    assert_same(found, wanted, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("surrogate_function", WINDOWS, ids=str)
@pytest.mark.parametrize("strange_gradient", [False, True])
def test_turn_off_is_its_surrogate(surrogate_function, strange_gradient):
    x = strewn((40, 5), [*STRANGE, 1e-41, 3e38])
    weights = strewn((40, 5)) if strange_gradient else torch.randn(40, 5)
    weights = weights.detach()
    found = TurnOffNode(0.5, surrogate_function)(x)
    wanted = surrogate_function(x - 0.5)
    assert torch.equal(found, wanted)
    assert torch.equal(found, (x >= 0.5).float())  # a potential that is no number does not fire
    got, want = (torch.autograd.grad(y, x, weights)[0] for y in (found, wanted))
    torch.testing.assert_close(got, want, equal_nan=True)
    if strange_gradient:
        assert got[weights.isnan()].isnan().all()


@pytest.mark.parametrize("surrogate_function", WINDOWS, ids=str)
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("strange", ["input", "gradient", "initial potential"])
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_turn_on_is_its_naive_twin(surrogate_function, learnable, strange, store_v_seq):
    x_seq, v = torch.randn(6, 40).requires_grad_(), torch.randn(40).requires_grad_()
    weights = torch.randn(6, 40)
    if strange == "input":
        x_seq = strewn((6, 40), [*STRANGE, 1e-41, 3e38], every=20)
    elif strange == "gradient":
        weights = strewn((6, 40)).detach()
    else:
        v = strewn((40,))
    node = TurnOnNode(
        0.7,
        surrogate_function=surrogate_function,
        step_mode="m",
        learnable_decay=learnable,
        store_v_seq=store_v_seq,
    )
    node.v = v.clone()
    spike = node(x_seq)
    wanted, v_seq = naive.turn_on(x_seq, v, node.decay, 0.5, surrogate_function)
    assert torch.equal(spike, wanted)
    torch.testing.assert_close(node.v, v_seq[-1], equal_nan=True, rtol=0, atol=0)
    inputs = [x_seq, v, node.decay] if learnable else [x_seq, v]
    found, expected = (torch.autograd.grad(y, inputs, weights) for y in (spike, wanted))
    for got, want in zip(found, expected, strict=True):
        assert got[want.isnan()].isnan().all()  # none is a number where autograd has none
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_a_potential_that_is_no_number_stays_so_and_never_fires():
    node = TurnOnNode(0.5, step_mode="m", store_v_seq=True)
    x_seq = torch.full((5, 3), 2.0)
    x_seq[1, 0], x_seq[1, 1], x_seq[1, 2] = STRANGE
    spikes = node(x_seq)
    assert spikes.tolist() == [[1, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert node.v_seq[1:, 0].isnan().all()
    assert (node.v_seq[1:, 1] == math.inf).all() and (node.v_seq[1:, 2] == -math.inf).all()
    functional.reset_net(node)
    assert node(x_seq[:1]).all()


def test_multi_level_neurons_carry_what_the_hosts_lif_carries():
    thresholds = (0.5, 1.5)
    node = MultiLevelFiringNode(step_mode="m", thresholds=thresholds)
    levels = [
        neuron.LIFNode(v_threshold=threshold, surrogate_function=Rect(), step_mode="m")
        for threshold in thresholds
    ]
    x_seq = strewn((5, 6, 4))
    spikes, wanted = node(x_seq), sum(level(x_seq) for level in levels)
    assert torch.equal(spikes, wanted)
    v = torch.stack([level.v for level in levels])
    torch.testing.assert_close(node.v, v, equal_nan=True)
    found, expected = (torch.autograd.grad(y.sum(), x_seq)[0] for y in (spikes, wanted))
    assert found[expected.isnan()].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_that_16_bits_cannot_hold_stay_numbers_in_a_turn_on_neuron(dtype):
    top = float(torch.finfo(dtype).max)
    x_seq = torch.full((4, 3), min(top, 3e37)).to(dtype) * torch.tensor([1, -1, 0.5]).to(dtype)
    node = TurnOnNode(1.0, step_mode="m")
    spikes = node(x_seq.requires_grad_())
    assert node.v.dtype == torch.float32 and node.v.isfinite().all()
    torch.testing.assert_close(node.v.double(), x_seq.double().sum(0))
    assert torch.equal(spikes, torch.tensor([1, 0, 1]).to(dtype).expand(4, 3))
    assert torch.autograd.grad(spikes.sum(), x_seq)[0].isfinite().all()


def test_the_decays_gradient_does_not_need_potentials_that_overflowed():
    """Plain autograd in float32 has 0 times infinity here; float64 can hold them all."""
    x_seq = torch.randn(300, 4, 5) * 0.3
    node = TurnOnNode(1.5, step_mode="m")
    found = torch.autograd.grad(node(x_seq).sum(), node.decay)[0]
    assert node.v.isinf().any()
    decay = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    start = torch.zeros(4, 5, dtype=torch.float64)
    spikes, _ = naive.turn_on(x_seq.double(), start, decay, 0.5, Rect())
    wanted = torch.autograd.grad(spikes.sum(), decay)[0]
    assert wanted != 0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_denormals_are_not_flushed(step_mode):
    least = 2.0**-149
    node = TurnOnNode(0.5, v_threshold=8 * least, step_mode=step_mode)
    x_seq = torch.tensor([3.0, 5.0, 6.0, 1.0]).view(4, 1) * least
    u, wanted = torch.zeros(1), []
    for x in x_seq:
        u = u * 0.5 + x
        wanted.append(float(u >= 8 * least))
    spikes = node(x_seq) if step_mode == "m" else torch.stack([node(x) for x in x_seq])
    assert spikes.flatten().tolist() == wanted and 0 < sum(wanted) < 4
    assert torch.equal(node.v, u) and u > 0


@pytest.mark.parametrize("decay", [0.999, -0.999, 1.0, 1e-3])
def test_a_thousand_steps(decay):
    """Spikes to the bit, gradients to rounding, and both step modes alike."""
    x_seq = (torch.randn(1000, 4, 4) * 0.1).requires_grad_()
    node = TurnOnNode(decay, step_mode="m")
    spikes = node(x_seq)
    wanted, v_seq = naive.turn_on(x_seq, torch.zeros(4, 4), node.decay, 0.5, Rect())
    assert torch.equal(spikes, wanted) and torch.equal(node.v, v_seq[-1])
    weights = torch.randn_like(spikes)
    found, expected = (
        torch.autograd.grad(y, [x_seq, node.decay], weights, retain_graph=True)
        for y in (spikes, wanted)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    # the terms of the sum over steps, G[t] U[t - 1], may cancel
    terms = (expected[0][1:] * v_seq[:-1]).abs().sum()
    assert (found[1] - expected[1]).abs() <= 5e-5 * terms
    for node_class in (neuron.IFNode, neuron.LIFNode):
        hosts = node_class(step_mode="m")
        ours = with_learnable_imp(node_class)(step_mode="m", imp_init=(0.0, 0.0))
        pair = [outputs_and_gradients(n, x_seq, weights) for n in (ours, hosts)]
        assert_same(*pair, rtol=0, atol=0)


# ---- the reversible cell -------------------------------------------------------------------------


def cell_gradients(cell, x_seq, weights, memory):
    cell = copy.deepcopy(cell)
    cell.memory = memory
    x_seq = x_seq.detach().clone().requires_grad_()
    y = cell(x_seq)
    y.backward(weights)
    learned = [
        # the decay of the very first step multiplies nothing: its gradient is 0 with us
        p
        for name, p in cell.named_parameters()
        if not name.startswith("decays.0.")
    ]
    return [y, *cell.states, x_seq.grad, *(p.grad for p in learned if p.grad is not None)]


def reversible(decays=(0.5, 0.9), widths=(6, 8, 5), **options):
    low, middle, top = widths
    levels = [LinearLevel(low, middle, top), LinearLevel(middle, top)]
    return TemporalReversible(levels, list(decays), **options)


@pytest.mark.parametrize("surrogate_function", WINDOWS, ids=str)
@pytest.mark.parametrize("strange", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("per_step", [False, True], ids=["shared decays", "decays per step"])
def test_what_is_no_number_travels_as_on_plain_autograd(surrogate_function, strange, per_step):
    decays = [[0.5, 0.9], [0.6, 0.7], [0.8, 0.4], [0.9, 0.5]] if per_step else (0.5, 0.9)
    cell = reversible(decays, surrogate_function=surrogate_function)
    x_seq, weights = torch.randn(4, 3, 6), torch.randn(4, 3, 5)
    if strange == "gradient":
        weights[2, 1, 0], weights[1, 0, 2] = math.nan, math.inf
    else:
        x_seq[1, 0, 2] = getattr(math, strange)
    found = cell_gradients(cell, x_seq, weights, "reversible")
    wanted = cell_gradients(cell, x_seq, weights, "autograd")
    rebuilt = per_step or type(surrogate_function) is not Rect
    for got, want in zip(found, wanted, strict=True):
        assert got[want.isnan()].isnan().all()
        if rebuilt:  # a potential that is no number cannot be run backwards: what needs it is none
            got, want = got[~got.isnan()], want[~got.isnan()]
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("surrogate_function", [Rect(), surrogate.ATan()], ids=str)
def test_a_thousand_steps_of_the_cell(surrogate_function):
    # a potential that a smooth window looks at is rebuilt to the tolerance
    options = {} if type(surrogate_function) is Rect else {"tolerance": 1e-6}
    cell = reversible((0.95, 0.9), surrogate_function=surrogate_function, **options)
    x_seq, weights = torch.randn(1000, 2, 6), torch.randn(1000, 2, 5)
    found = cell_gradients(cell, x_seq, weights, "reversible")
    wanted = cell_gradients(cell, x_seq, weights, "autograd")
    learned = len(list(cell.parameters()))
    # of all parameters together: the sum that one decay gets may cancel, and has no digits then
    found, wanted = (
        [*each[:-learned], torch.cat([grad.flatten() for grad in each[-learned:]])]
        for each in (found, wanted)
    )
    for got, want in zip(found, wanted, strict=True):
        assert (got - want).norm() / want.norm().clamp_min(1e-6) < 1e-3


@given(
    steps=st.integers(1, 6),
    decay=st.floats(-1.5, 1.5).filter(lambda a: abs(a) >= 1e-3),
    scale=st.sampled_from([1e-41, 1e-20, 1.0, 1e20]),
    rect=st.booleans(),
    draw_seed=st.integers(0, 2**31 - 1),
)
def test_reversal_at_every_scale(steps, decay, scale, rect, draw_seed):
    torch.manual_seed(draw_seed)
    cell = reversible((decay, 0.5), surrogate_function=Rect() if rect else surrogate.Sigmoid())
    x_seq, weights = torch.randn(steps, 2, 6) * scale, torch.randn(steps, 2, 5)
    found = cell_gradients(cell, x_seq, weights, "reversible")
    wanted = cell_gradients(cell, x_seq, weights, "autograd")
    for got, want in zip(found, wanted, strict=True):
        assert (got - want).norm() <= 1e-3 * want.norm() + 1e-30


# ---- losses --------------------------------------------------------------------------------------


def per_step(y_seq, target, **kwargs):
    return torch.stack([F.cross_entropy(y, target, **kwargs) for y in y_seq]).mean()


LOSSES = {
    "sdt": (sdt_cross_entropy, lambda y, q: F.cross_entropy(y.mean(0), q)),
    "tet": (tet_cross_entropy, per_step),
    "tet, mse": (
        lambda y, q: tet_cross_entropy(y, q, lamb=0.1),
        lambda y, q: 0.9 * per_step(y, q) + 0.1 * F.mse_loss(y, torch.ones_like(y)),
    ),
    "tet_s": (tet_s_cross_entropy, lambda y, q: per_step(y, q, label_smoothing=0.01)),
    "lts": (lts_cross_entropy, lambda y, q: F.cross_entropy(y[-1], q)),
}


@given(
    name=st.sampled_from(sorted(LOSSES)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5)),
    strange=st.sampled_from([*STRANGE, 1e-41, 1e30, -1e30]),
    place=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)),
    probabilities=st.booleans(),
    draw_seed=st.integers(0, 2**31 - 1),
)
def test_losses_of_strange_logits_are_those_of_pytorch(
    name, sizes, strange, place, probabilities, draw_seed
):
    torch.manual_seed(draw_seed)
    _, n, c = sizes
    y_seq = torch.randn(sizes)
    y_seq[tuple(i % size for i, size in zip(place, sizes, strict=True))] = strange
    y_seq.requires_grad_()
    target = torch.rand(n, c).softmax(-1) if probabilities else torch.randint(c, (n,))
    ours, theirs = (loss(y_seq, target) for loss in LOSSES[name])
    assert not ours.isfinite() or theirs.isfinite()
    assert ours.isfinite() or not theirs.isfinite()
    if theirs.isfinite():
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(loss, y_seq)[0] for loss in (ours, theirs))
    assert found[wanted.isnan()].isnan().all()
    finite = wanted.isfinite()
    torch.testing.assert_close(found[finite], wanted[finite], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", STRANGE)
def test_probabilities_that_are_no_numbers_are_refused(bad):
    target = torch.full((3, 4), 0.25)
    target[1, 2] = bad
    for loss, _ in LOSSES.values():
        with pytest.raises(ValueError, match="sample 1"):
            loss(torch.randn(2, 3, 4), target)
