"""What a compact network holds is bits, and its peak is that of one slice."""

import torch
from compact_nets import ATAN, sew_resnet18
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_ext.analysis import activation_memory
from sj_ext.memory import compact


def convolutions(channels=16):
    body = []
    below = 1
    for _ in range(3):
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
