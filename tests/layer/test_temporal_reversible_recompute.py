"""Levels that keep their graph give the gradients of plain autograd, and hold spikes as bits."""

import copy

import pytest
import torch
from cells import (
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
from torch import nn

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.layer import TemporalReversible
from sj_ext.neuron import TurnOffNode
from sj_ext.surrogate import ClosedRect, Rect

SURROGATES = [Rect(), ClosedRect(), host.surrogate.ATan()]


@pytest.mark.parametrize("recompute", [False, (True, False, False), (False, True, False)])
@pytest.mark.parametrize("decay", [0.5, 0.001])
def test_gradients_are_those_of_plain_autograd(recompute, decay, seed):
    """With batch normalisation and dropout in the levels."""
    cell, x = conv_cell(decay, recompute=recompute), conv_input(6)
    oracle = twin(cell)
    y, found = gradients(cell, x, seed)
    y_wanted, wanted = gradients(oracle, x, seed)
    assert torch.equal(y, y_wanted)
    assert difference(found, wanted) < 1e-5
    buffers = dict(oracle.named_buffers())
    assert all(torch.equal(b, buffers[name]) for name, b in cell.named_buffers())


@pytest.mark.parametrize("recompute", [False, (False, True, False), (True, False, True)])
@pytest.mark.parametrize("kind", ["shared", "per step", "columns", "fixed", "chunk"])
@pytest.mark.parametrize("surrogate_function", SURROGATES, ids=lambda f: type(f).__name__)
def test_in_float64_over_two_calls(recompute, kind, surrogate_function, seed):
    """States are carried from call to call; every kind of decay and surrogate."""
    options = {"recompute": recompute, "surrogate_function": surrogate_function}
    levels, decays = linear_levels(), [0.7, -0.4, 0.9]
    if kind == "per step":
        decays = [[0.7, -0.4, 0.9 - 0.1 * t] for t in range(6)]
    elif kind == "columns":
        levels, decays = [linear_levels() for _ in range(6)], [[0.7, -0.4, 0.9]] * 6
        levels[0] = linear_levels(feedback=False)
    elif kind == "chunk":
        levels = linear_levels(feedback=False)
        options |= {"feedback": False, "chunk": 2}
    cell = TemporalReversible(levels, decays, **options).double()
    cell.decays.requires_grad_(kind != "fixed")
    oracle, x = twin(cell), torch.randn(6, 4, 6, dtype=torch.float64)

    def run(cell):
        torch.manual_seed(seed)
        inputs = x.clone().requires_grad_()
        y = torch.cat([cell(inputs[:4]), cell(inputs[4:])])
        learned = [p for p in cell.parameters() if p.requires_grad]
        return y, torch.autograd.grad(loss_of(y, cell.states), [inputs, *learned])

    (y, found), (y_wanted, wanted) = run(cell), run(oracle)
    assert torch.equal(y, y_wanted)
    tolerance = 1e-10 if type(surrogate_function) is not host.surrogate.ATan else 1e-4
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


class Wide(nn.Module):
    """A level of turn-off neurons and dropout: half of what it keeps are spikes or masks."""

    def __init__(self, below, channels):
        super().__init__()
        self.down, self.fire = nn.Linear(below, channels), TurnOffNode()
        self.drop, self.up = nn.Dropout(0.5), nn.Linear(channels, channels)

    def forward(self, below, above):
        return self.up(self.drop(self.fire(self.down(below))))


@pytest.mark.parametrize("recompute", [True, False])
def test_spikes_and_masks_are_held_as_bits(recompute):
    batch, width = 64, 256
    levels = [Wide(16, width), Wide(width, width)]
    cell = TemporalReversible(levels, [0.5, 0.5], recompute=recompute)
    cell.decays.requires_grad_(False)

    def held(steps):
        x = [torch.randn(batch, 16)] * steps
        cell.reset()
        loss, memory = activation_memory(lambda: (cell(x).mean(), cell.reset())[0])
        del loss
        return memory.saved

    per_step = (held(10) - held(4)) / 6 / (batch * width / 8)  # in bits per neuron of a level
    if recompute:
        assert per_step < 5
    else:  # dropout's output, its mask and the window; above level 0 the input; the key neurons'
        assert 6 <= per_step < 14
    cell.memory = "autograd"
    assert (held(10) - held(4)) / 6 / (batch * width / 8) > 150


def test_nothing_is_held_after_the_backward_pass():
    cell = conv_cell(recompute=False)
    x = conv_input(4)

    def step():
        loss = cell(x).mean()
        loss.backward()
        cell.reset()
        return loss

    step()  # gradients exist from here on
    loss, memory = activation_memory(step)
    assert memory.saved <= 64
    del loss


def test_a_second_backward_pass_asks_for_retain_graph(seed):
    cell, x = conv_cell(recompute=False), conv_input(3)
    loss = cell(x).square().mean()
    first = torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True)
    again = torch.autograd.grad(loss, list(cell.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        torch.autograd.grad(loss, list(cell.parameters()))


def test_hooks_of_parameters_see_one_gradient_each():
    cell, seen = conv_cell(recompute=False), []
    for name, p in cell.named_parameters():
        p.register_hook(lambda grad, name=name: seen.append(name))
    cell(conv_input(4)).mean().backward()
    assert sorted(seen) == sorted(name for name, _ in cell.named_parameters())
    assert all(type(p) is nn.Parameter for p in cell.parameters())


def test_records_may_be_kept_elsewhere(seed):
    cell, x = conv_cell(recompute=False), conv_input(4)
    _, wanted = gradients(copy.deepcopy(cell), x, seed)
    moved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: moved.append(t.clone()) or len(moved) - 1, lambda place: moved[place]
    )
    with hooks:
        torch.manual_seed(seed)
        inputs = x.clone().requires_grad_()
        y = cell(inputs)
    loss_of(y, cell.states).backward()
    assert moved
    found = {"input": inputs.grad} | {name: p.grad for name, p in cell.named_parameters()}
    assert difference(found, wanted) < 1e-6


def test_what_is_changed_in_place_is_told():
    class InPlace(LinearLevel):
        def forward(self, below, above):
            h = super().forward(below, above).exp()
            return h.add_(1.0)

    cell = TemporalReversible([InPlace(6, 5)], [0.5], recompute=False)
    with pytest.raises(RuntimeError, match="changed a tensor in place"):
        cell(torch.randn(2, 3, 6))


def test_a_tensor_from_outside_is_told():
    outside = torch.ones(5, requires_grad=True)

    class Foreign(LinearLevel):
        def forward(self, below, above):
            return super().forward(below, above) * outside

    cell = TemporalReversible([Foreign(6, 5)], [0.5], recompute=False)
    with pytest.raises(RuntimeError, match="register it as a parameter"):
        cell(torch.randn(2, 3, 6))


@pytest.mark.parametrize(
    ("value", "error"),
    [(1, TypeError), (None, TypeError), ((True, 1, False), TypeError), ((True,), ValueError)],
)
def test_bad_input(value, error):
    with pytest.raises(error, match="recompute must"):
        TemporalReversible(conv_levels(), [0.5] * 3, recompute=value)
    cell = conv_cell(recompute=(True, False, True))
    assert cell.recompute == (True, False, True)
