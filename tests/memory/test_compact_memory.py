"""What a compact network holds is bits, and its peak is that of one slice."""

import pytest
import torch
from compact_nets import ATAN, sew_resnet18
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_ext.analysis import activation_memory
from sj_ext.memory import compact
from sj_ext.memory.budget import bytes_of


def convolutions(channels=16, layers=3):
    body = []
    below = 1
    for _ in range(layers):
        body += [
            layer.Conv2d(below, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.LIFNode(detach_reset=True, **ATAN),
        ]
        below = channels
    net = nn.Sequential(*body)
    functional.set_step_mode(net, "m")
    return net


def memory(net, x):
    """Bytes held after the forward pass, and at the peak of a step that has its gradients."""

    def forward():
        functional.reset_net(net)
        return net(x).sum()

    def step():
        forward().backward()

    step()
    held = activation_memory(forward)[1].saved
    return held, activation_memory(step)[1].peak


def spikes(num_steps, batch, channels=16, side=16):
    return (torch.rand(num_steps, batch, channels, side, side) > 0.5).float()


def test_an_added_step_costs_a_bit_for_every_spike():
    held = {}
    for num_steps in (2, 6):
        x = spikes(num_steps, 4, channels=1)
        held[num_steps], _ = memory(compact(convolutions(), x, slices=4), x)
    per_step = (held[6] - held[2]) / 4
    # three layers of 16 channels and the input's one channel, a bit each; a byte is the least
    assert per_step <= 4 * 16 * 16 * (3 * 16 + 1) / 8 + 64


def test_what_a_segment_left_is_not_held_twice():
    x = spikes(4, 4, channels=1)
    held, _ = memory(compact(convolutions(), x), x)
    bits = x.numel() / 8 * (1 + 3 * 16)
    assert bits <= held <= 1.1 * bits


def test_the_peak_in_slices_is_a_fraction():
    net, x = convolutions(), spikes(4, 8, channels=1)
    _, plain = memory(net, x)
    _, whole = memory(compact(net, x), x)
    _, sliced = memory(compact(net, x, slices=8), x)
    output = x.numel() * 16 * 4  # one layer's spikes in float32
    assert plain > 12 * output
    assert sliced <= 4 * output  # a gradient that comes, one that goes, and one slice
    assert sliced < whole / 2 < plain / 2


def test_a_host_network_holds_a_fortieth():
    net, x = sew_resnet18(), torch.rand(4, 2, 3, 64, 64)

    def forward(model):
        functional.reset_net(model)
        return model(x).sum()

    plain = activation_memory(lambda: forward(net))[1].saved
    small = compact(net, x)
    assert activation_memory(lambda: forward(small))[1].saved <= plain / 40


def test_inputs_of_norms_lie_between_bits_and_plain_training():
    x = spikes(4, 4, channels=1)
    plain, _ = memory(convolutions(), x)
    inputs, _ = memory(compact(convolutions(), x, keep="inputs"), x)
    held, _ = memory(compact(convolutions(), x), x)
    floats = 3 * 16 * 4 * x.numel()  # what three convolutions give
    assert held + floats <= inputs <= 1.1 * (held + floats) < plain / 3


def test_the_report_counts_the_inputs_that_are_kept():
    x = spikes(4, 4, channels=1)
    small = compact(convolutions(), x, keep="inputs")
    rows = small.compaction.rows
    assert [row.macs for row in rows] == [1.0] * 3
    bits = [row.after for row in compact(convolutions(), x).compaction.rows]
    assert [row.after for row in rows] == [own + 16 * 4 * x.numel() for own in bits]
    assert "inputs of norms and neurons" in str(small.compaction)


def test_a_budget_takes_the_first_plan_that_fits():
    net, x = convolutions(), spikes(4, 8, channels=1)
    generous = compact(net, x, budget="1 GB").compaction
    assert (generous.segments, generous.slices) == ([], 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tight = compact(net, x, budget=generous.peak / 2)
    assert tight.compaction.slices > 1 and len(tight.compaction.segments) == 3
    assert tight.compaction.keep == "bits" and tight.compaction.rows[0].macs == 2.0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())

    def step():
        functional.reset_net(tight)
        tight(x).sum().backward()

    assert activation_memory(step)[1].peak <= 1.1 * tight.compaction.peak <= generous.peak / 1.8


def test_a_budget_keeps_what_it_can():
    net, x = convolutions(layers=6), spikes(4, 4, channels=1)
    plain = compact(net, x, budget="1 GB").compaction
    inputs = compact(net, x, budget=plain.peak - 1).compaction
    assert (inputs.keep, inputs.slices, inputs.rows[0].macs) == ("inputs", 1, 1.0)
    bits = compact(net, x, budget=inputs.peak - 1).compaction
    assert (bits.keep, bits.slices) == ("bits", 1)


def test_a_budget_that_nothing_fits_says_how_many_samples_can():
    net, x = convolutions(), spikes(4, 8, channels=1)
    with pytest.raises(ValueError, match=r"no more than 0 samples can fit"):
        compact(net, x, budget="10 KB")


@pytest.mark.parametrize(
    ("budget", "error"),
    [(True, TypeError), ([1], TypeError), ("8", ValueError), ("8 XB", ValueError), (0, ValueError)],
)
def test_a_budget_that_is_none(budget, error):
    with pytest.raises(error, match="budget"):
        compact(convolutions(), spikes(4, 2, channels=1), budget=budget)


def test_sizes():
    assert bytes_of("8 GB") == 8 * 10**9
    assert bytes_of("1.5MiB") == 3 * 2**19
    assert bytes_of(1000) == 1000
