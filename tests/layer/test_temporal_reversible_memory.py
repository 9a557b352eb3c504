"""What is held after the forward pass hardly grows with T; the peak is one level at one step."""

import pytest
import torch
from cells import CHANNELS, conv_levels, twin
from torch import nn

from sj_ext.analysis import activation_memory
from sj_ext.layer import TemporalReversible
from sj_ext.surrogate import DSpike

BATCH, SIDE = 4, 16
#: bytes of one step's key potentials in float32
KEY_STATE = 4 * BATCH * sum(c * (SIDE // s) ** 2 for c, s in zip(CHANNELS, (1, 2, 4), strict=True))


def held(cell, num_steps):
    """Bytes alive after a forward pass whose output is reduced at once and whose state is reset."""
    x = torch.randn(BATCH, 3, SIDE, SIDE)

    def forward():
        total = cell([x] * num_steps).mean()
        cell.reset()
        return total

    loss, memory = activation_memory(forward)
    assert loss.requires_grad
    return memory.saved


def peak(cell, num_steps):
    x = torch.randn(BATCH, 3, SIDE, SIDE)

    def step():
        cell([x] * num_steps).mean().backward()
        cell.reset()
        cell.zero_grad()

    return activation_memory(step)[1].peak


def growth(cell, few=4, many=16):
    return (held(cell, many) - held(cell, few)) / (many - few)


def test_an_added_step_costs_two_bits_per_key_neuron():
    cell = TemporalReversible(conv_levels(dropout=0.0), [0.5] * 3)
    per_step = growth(cell)
    assert per_step <= KEY_STATE / 8
    assert per_step <= KEY_STATE / 16 + 3 * 256  # two bits, and a fingerprint for each level
    assert growth(twin(cell)) > 4 * KEY_STATE


def test_dropout_adds_nothing():
    """A run of a level draws its numbers from a seed, not from a state of kilobytes."""
    cell = TemporalReversible(conv_levels(dropout=0.2), [0.5] * 3)
    assert growth(cell) <= KEY_STATE / 16 + 3 * 256


def test_decays_of_their_own_for_each_step_stay_below_an_eighth():
    columns = [[0.5] * 3 for _ in range(22)]
    cell = TemporalReversible(conv_levels(dropout=0.0), columns, tolerance=1e-3)
    assert growth(cell, 2, 22) <= KEY_STATE / 8 + 12 * 64


def test_windows_that_are_not_rectangular_keep_a_potential_every_few_steps():
    cell = TemporalReversible(
        conv_levels(dropout=0.0), [0.5] * 3, surrogate_function=DSpike(), tolerance=1e-3
    )
    assert growth(cell, 2, 26) <= KEY_STATE / 8 + 12 * 64


def test_peak_is_nearly_flat():
    cell = TemporalReversible(conv_levels(), [0.5] * 3)
    few, many = peak(cell, 4), peak(cell, 16)
    top = 4 * BATCH * CHANNELS[2] * (SIDE // 4) ** 2  # the output, its gradient and their copies
    assert (many - few) / 12 <= KEY_STATE / 16 + 3 * 256 + 3 * top
    assert peak(twin(cell), 16) > 3 * many


def test_one_levels_graph_at_a_time():
    """Levels that hold a lot inside: the peak has room for one of them, not for two."""

    class Wide(nn.Module):
        def forward(self, below, above):
            for _ in range(20):
                below = (below * 1.01).sin()
            return below

    x = torch.randn(64, 1024)
    one_level = 20 * x.numel() * 4
    cell = TemporalReversible([Wide() for _ in range(4)], [0.5] * 4)
    _, memory = activation_memory(lambda: cell([x] * 6).sum().backward())
    assert one_level < memory.peak < 2 * one_level


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_without_gradients(context):
    cell = TemporalReversible(conv_levels(), [0.5] * 3)
    x = torch.randn(6, BATCH, 3, SIDE, SIDE)
    with context():
        y, memory = activation_memory(lambda: cell(x))
    states = sum(u.numel() * 4 for u in cell.states)
    assert not y.requires_grad
    assert memory.saved == y.numel() * 4 + states
