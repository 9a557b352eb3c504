"""Gradients are those of plain autograd, and plain autograd's are those of the equations."""

import copy

import pytest
import torch
from cells import (
    CHANNELS,
    LinearLevel,
    conv_cell,
    conv_input,
    conv_levels,
    difference,
    gradients,
    linear_levels,
    loss_of,
    twin,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sj_ext import host
from sj_ext.layer import TemporalReversible
from sj_ext.surrogate import ClosedRect, DSpike, Rect

EXACT = 1e-5
BFLOAT16 = 2e-2


def mixed_decays():
    per_channel = [10 ** (-3 * torch.rand(channels, 1, 1)) for channels in CHANNELS]
    per_channel[0][0] *= -1
    return per_channel


@pytest.mark.parametrize("num_steps", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.1, 0.01, 0.001, "mixed"])
def test_exact_for_every_decay_and_length(decay, num_steps, seed):
    decays = mixed_decays() if decay == "mixed" else [decay] * 3
    cell = TemporalReversible(conv_levels(), decays)
    oracle, x = twin(cell), conv_input(num_steps)
    y, found = gradients(cell, x, seed)
    y_wanted, wanted = gradients(oracle, x, seed)
    assert torch.equal(y, y_wanted)
    assert difference(found, wanted) < EXACT
    decays_only = [name for name in wanted if name.startswith("decays")]
    assert len(decays_only) == 3
    error = difference({n: found[n] for n in decays_only}, {n: wanted[n] for n in decays_only})
    assert error < EXACT


@pytest.mark.parametrize("num_steps", [2, 8, 32])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.01])
def test_close_under_bfloat16_autocast(decay, num_steps, seed):
    cell, x = conv_cell(decay), conv_input(num_steps)
    oracle = twin(cell)
    y, found = gradients(cell, x, seed, autocast=True)
    y_wanted, wanted = gradients(oracle, x, seed, autocast=True)
    assert y.dtype == torch.float32  # potentials are not rounded to the levels' dtype
    assert torch.equal(y, y_wanted)
    assert difference(found, wanted) < BFLOAT16


def by_the_equations(cell, x_seq, surrogate_function):
    """The recursion written down once more, in the input's dtype."""
    levels, decays = list(cell.levels), list(cell.decays)
    u, spikes = [0.0] * len(levels), [None] * len(levels)
    top = []
    for x in x_seq:
        for level, (run, a) in enumerate(zip(levels, decays, strict=True)):
            below = spikes[level - 1] if level else x
            above = spikes[level + 1] if level + 1 < len(levels) else None
            u[level] = a * u[level] + run(below, above)
            spikes[level] = surrogate_function(u[level] - cell.v_threshold)
        top.append(u[-1])
    return torch.stack(top), u


@pytest.mark.parametrize("memory", ["reversible", "autograd"])
@pytest.mark.parametrize(
    "surrogate_function", [Rect(), ClosedRect(), DSpike(), host.surrogate.ATan()]
)
def test_equations_in_float64(memory, surrogate_function, seed):
    decays = [0.7, -0.4, 0.9]
    cell = TemporalReversible(
        linear_levels(), decays, memory=memory, surrogate_function=surrogate_function
    ).double()
    written = copy.deepcopy(cell)
    x = torch.randn(6, 4, 6, dtype=torch.float64)
    y, found = gradients(cell, x, seed)
    x_written = x.clone().requires_grad_()
    y_written, states = by_the_equations(written, x_written, surrogate_function)
    loss_of(y_written, states).backward()
    torch.testing.assert_close(y, y_written.detach(), rtol=1e-12, atol=1e-12)
    wanted = {"input": x_written.grad} | {n: p.grad for n, p in written.named_parameters()}
    assert difference(found, wanted) < 1e-10


@pytest.mark.parametrize("closed", [False, True])
def test_potentials_on_the_ends_of_the_window(closed, seed):
    """Sums of quarters, halved a few times, are exact: they lie on 0 and 1 where they seem to."""
    surrogate_function = (ClosedRect if closed else Rect)()
    cell = TemporalReversible(linear_levels(), [0.5] * 3, surrogate_function=surrogate_function)
    with torch.no_grad():
        for p in cell.levels.parameters():
            p.copy_(torch.randint(-2, 3, p.shape) / 4)
    written = copy.deepcopy(cell.double())
    x = torch.randint(-2, 3, (4, 5, 6)).double()
    _, found = gradients(cell, x, seed)
    x_written, on_an_end = x.clone().requires_grad_(), 0

    def fire(above):
        nonlocal on_an_end
        on_an_end += int((above.abs() == 0.5).sum())
        inside = above.abs() <= 0.5 if closed else above.abs() < 0.5
        return (above >= 0) + inside * (above - above.detach())

    loss_of(*by_the_equations(written, x_written, fire)).backward()
    wanted = {"input": x_written.grad} | {n: p.grad for n, p in written.named_parameters()}
    assert on_an_end > 0
    assert difference(found, wanted) < 1e-10


def test_columns_with_their_own_levels_and_decays(seed):
    columns = [conv_levels() for _ in range(5)]
    decays = [[torch.full((c, 1, 1), 0.5) + 0.3 * torch.rand(c, 1, 1) for c in CHANNELS]
              for _ in range(5)]  # fmt: skip
    cell, x = TemporalReversible(columns, decays), conv_input(5)
    # The first column's way up has nothing to carry.
    for level in cell.levels[0]:
        level.up = None
    oracle = twin(cell)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < EXACT


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.1, 0.001])
def test_decay_per_step_over_shared_levels(decay, seed):
    cell, x = TemporalReversible(conv_levels(), [[decay] * 3 for _ in range(24)]), conv_input(24)
    oracle = twin(cell)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < EXACT


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("name", ["ATan", "Sigmoid", "PiecewiseQuadratic"])
def test_windows_that_are_not_rectangular(decay, name, seed):
    """The potential that the surrogate looks at is rebuilt to 1e-4 of its scale."""
    surrogate_function = getattr(host.surrogate, name)()
    cell, x = conv_cell(decay, surrogate_function=surrogate_function), conv_input(16)
    oracle = twin(cell)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < 1e-3


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.01])
def test_a_tighter_tolerance_rebuilds_windows_with_edges(decay, seed):
    """Dspike jumps at both ends of its window; exact potentials see no edge move."""
    options = {"surrogate_function": DSpike(2.0), "tolerance": 1e-12}
    cell, x = conv_cell(decay, **options), conv_input(16)
    oracle = twin(cell)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < EXACT


def test_learnable_surrogate(seed):
    cell = TemporalReversible(
        linear_levels(), [0.5] * 3, surrogate_function=DSpike(learnable=True), tolerance=1e-12
    )
    oracle, x = twin(cell), torch.randn(8, 4, 6)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert "surrogate_function.alpha" in wanted
    assert difference(found, wanted) < EXACT


@settings(max_examples=15)
@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    num_steps=st.integers(1, 6),
    calls=st.integers(1, 3),
    alpha=st.sampled_from([0.5, 1.0, 3.0]),
    draw_seed=st.integers(0, 2**31 - 1),
)
def test_any_depth_length_and_carried_states(widths, num_steps, calls, alpha, draw_seed):
    """Gradients run through states that are carried over, which nothing detached."""
    torch.manual_seed(draw_seed)
    levels = linear_levels(widths)
    decays = [0.2 + torch.rand(1, width) for width in widths[1:]]
    cell = TemporalReversible(levels, decays, surrogate_function=Rect(alpha))
    oracle = twin(cell)
    x = torch.randn(calls, num_steps, 2, widths[0], dtype=torch.float32)
    found = []
    for net in (cell, oracle):
        leaf = x.clone().requires_grad_()
        loss = sum(loss_of(net(part), net.states) for part in leaf)
        loss.backward()
        grads = {n: p.grad for n, p in net.named_parameters() if "up" not in n}
        found.append({"input": leaf.grad, **grads})
    assert difference(*found) < EXACT


def test_a_static_input_given_many_times_gets_one_gradient(seed):
    cell = conv_cell()
    oracle = twin(cell)
    found = []
    for net, repeat in ((cell, lambda x: [x] * 6), (oracle, lambda x: x.expand(6, *x.shape))):
        torch.manual_seed(seed)
        x = conv_input(1)[0].requires_grad_()
        loss_of(net(repeat(x)), net.states).backward()
        found.append({"input": x.grad, **{n: p.grad for n, p in net.named_parameters()}})
    assert difference(*found) < EXACT


def test_channels_last_comes_back_as_it_was(seed):
    """Recorded spikes keep their strides, so a level runs the same kernels on them."""
    strides = []

    class Watching(type(conv_levels()[1])):
        def forward(self, below, above):
            strides.append(below.stride())
            return super().forward(below, above)

    levels = conv_levels()
    levels[1].__class__ = Watching
    cell = TemporalReversible(levels, [0.5] * 3).to(memory_format=torch.channels_last)
    x = conv_input(4)
    x = torch.stack([step.contiguous(memory_format=torch.channels_last) for step in x])
    x = [step.contiguous(memory_format=torch.channels_last) for step in x]
    cell(x).sum().backward()
    assert len(strides) == 8
    assert strides[:4] == strides[:3:-1]
    assert strides[0][1] == 1


def test_a_decay_below_the_least_acts_with_the_least_and_learns(seed):
    cell = TemporalReversible(linear_levels(), [0.5] * 3, min_decay=0.1)
    at_least = TemporalReversible(linear_levels(), [0.5, -0.1, 0.1], min_decay=0.1)
    at_least.load_state_dict(cell.state_dict() | {"decays.1": torch.tensor([-0.1]),
                                                  "decays.2": torch.tensor([0.1])})  # fmt: skip
    with torch.no_grad():
        cell.decays[1].fill_(-0.03)
        cell.decays[2].fill_(0.0)
    x = torch.randn(5, 4, 6)
    y, found = gradients(cell, x, seed)
    y_wanted, wanted = gradients(at_least, x, seed)
    torch.testing.assert_close(y, y_wanted)
    assert difference(found, wanted) < EXACT
    assert found["decays.2"] != 0


def test_a_parameter_whose_gradient_is_that_of_the_potential(seed):
    """Autograd hands the same tensor on to both; summing up one must not change the other."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.randn(3, 6))

        def forward(self, below, above):
            return below + self.shift

    cell = TemporalReversible([Shift(), Shift()], [0.5, 0.9])
    oracle, x = twin(cell), torch.randn(6, 3, 6)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < EXACT


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_levels_whose_weights_are_computed(seed):
    """Parametrised weights, weights computed in hooks, and recurrent layers, which hold copies."""

    class Computed(LinearLevel):
        def __init__(self, below, features, above=None):
            super().__init__(below, features, above)
            self.down = nn.utils.parametrizations.weight_norm(self.down)
            self.hooked = nn.utils.weight_norm(nn.Linear(features, features))
            self.recurrent = nn.GRU(features, features)

        def forward(self, below, above):
            h = super().forward(below, above)
            return h + self.hooked(h) + self.recurrent(h)[0]

    cell = TemporalReversible([Computed(6, 8, 5), Computed(8, 5)], [0.5, 0.5])
    oracle = TemporalReversible([Computed(6, 8, 5), Computed(8, 5)], [0.5, 0.5], memory="autograd")
    oracle.load_state_dict(cell.state_dict())
    x = torch.randn(5, 3, 6)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < EXACT


def test_an_empty_batch(seed):
    cell = TemporalReversible(linear_levels(), [0.5] * 3)
    y = cell(torch.randn(3, 0, 6))
    y.sum().backward()
    assert y.shape == (3, 0, 5)
    assert not any(p.grad.any() for p in cell.parameters())
