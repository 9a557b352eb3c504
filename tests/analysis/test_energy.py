"""Synaptic operations: a count by hand, SpikingJelly's own counter, and T-RevSNN."""

import pytest
import torch
from torch import nn

from sj_ext import host
from sj_ext.analysis import synaptic_operations
from sj_ext.layer.attention import MatrixProduct
from sj_ext.model import TRevSNN, reparameterize
from sj_ext.search import cost


def spikes(*shape):
    return (torch.rand(*shape) < 0.3).float()


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 5)),
        (nn.Conv2d(3, 2, (2, 3), dilation=2, padding="same"), (1, 3, 6, 6)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (1, 2, 5, 5)),
        (nn.Conv1d(4, 8, 3, padding=2), (2, 4, 9)),
        (nn.Linear(7, 5), (3, 2, 7)),
    ],
)
def test_additions_are_what_weights_of_one_add_up_to(layer, shape):
    x = spikes(*shape)
    counting = type(layer)(**_arguments(layer)).requires_grad_(False)
    counting.weight.fill_(1)
    counted = synaptic_operations(layer.eval(), x)
    assert counted.acs == round(float(counting(x).double().sum()))
    assert counted.macs == 0
    assert counted.layers[0].rate == pytest.approx(float(x.mean()))


def _arguments(layer):
    if isinstance(layer, nn.Linear):
        return {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": False,
        }
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    names += ("groups", "padding_mode")
    return {**{name: getattr(layer, name) for name in names}, "bias": False}


def test_real_values_are_multiplied():
    layer = nn.Conv2d(3, 8, 3, padding=1).eval()
    counted = synaptic_operations(layer, torch.randn(2, 3, 6, 6))
    assert counted.acs == 0
    assert counted.macs == counted.dense == 2 * 6 * 6 * 8 * 27
    assert counted.energy() == pytest.approx(4.6 * counted.macs)


def test_steps_of_a_multi_step_layer_add_up():
    layer = host.layer.Conv2d(3, 4, 3, padding=1, bias=False).eval()
    x_seq = spikes(5, 2, 3, 6, 6)
    steps = sum(synaptic_operations(layer, x).acs for x in x_seq)
    host.functional.set_step_mode(layer, "m")
    assert synaptic_operations(layer, x_seq).acs == steps


def test_composed_trevsnn_only_adds_after_the_stem():
    net = TRevSNN((4, 6, 8, 10), 5, 3, norm="bn")
    x = torch.randn(2, 3, 32, 32)
    composed = synaptic_operations(reparameterize(net, compose=True), x)
    after_stem = [layer for layer in composed.layers if not layer.name.startswith("stem")]
    assert sum(layer.macs for layer in after_stem) == 0
    assert sum(layer.acs for layer in after_stem) > 0
    stem = [layer for layer in composed.layers if layer.name.startswith("stem")]
    assert composed.macs == sum(layer.dense for layer in stem)
    assert composed.energy(1.0, 0.0) == composed.acs


def test_training_mode_and_empty_networks_are_refused():
    with pytest.raises(RuntimeError, match="evaluation mode"):
        synaptic_operations(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="no convolution"):
        synaptic_operations(nn.Identity().eval(), torch.ones(1, 2))


def test_weights_of_zero_cost_nothing():
    """Against a count in the open: spikes times the weights other than 0 that each one meets."""
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False).eval()
    linear = nn.Linear(10, 7, bias=False).eval()
    for layer in (conv, linear):
        with torch.no_grad():
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
    for layer, x in ((conv, torch.rand(2, 4, 7, 7)), (linear, torch.rand(3, 5, 10))):
        spikes = (x < 0.4).float()
        counting = type(layer)(*_shape_of(layer)).requires_grad_(False)
        counting.weight.copy_(layer.weight != 0)
        want = int(counting(spikes).double().sum())
        got = synaptic_operations(layer, spikes)
        assert got.acs == want > 0
        macs = synaptic_operations(layer, x + 0.1).macs
        assert macs == round(got.dense * float((layer.weight != 0).double().mean()))


def _shape_of(layer):
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, False
    return 4, 6, 3, 2, 1, 1, 2, False


def _spiking():
    return nn.Sequential(nn.Conv2d(2, 4, 3), host.neuron.LIFNode(), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_figure_is_the_same_each_time_and_nothing_changes(step_mode):
    """Three calls gave three figures when each began with the state that the last one left."""
    net = nn.Sequential(
        host.layer.Conv2d(2, 4, 3), host.neuron.LIFNode(), host.layer.Flatten(), nn.Linear(64, 3)
    ).eval()
    host.functional.set_step_mode(net, step_mode)
    x = 2 * torch.randn(*(5, 3)[step_mode == "s" :], 2, 6, 6)
    net(x)
    v = net[1].v
    counted = [synaptic_operations(net, x) for _ in range(3)]
    assert counted[0] == counted[1] == counted[2] and counted[0].samples == 3
    assert net[1].v is v and not any(module._forward_hooks for module in net.modules())
    with pytest.raises(RuntimeError):
        synaptic_operations(net, x.repeat_interleave(2, -1))  # too much for the last layer
    assert net[1].v is v and not any(module._forward_hooks for module in net.modules())


def test_energy_is_told_per_sample_and_as_a_table():
    net = _spiking().eval()
    x = 2 * torch.rand(2, 2, 6, 6)
    one = [synaptic_operations(net, x[i : i + 1]) for i in range(2)]
    both = synaptic_operations(net, x)
    assert both.samples == 2
    assert both.energy() == pytest.approx(sum(counted.energy() for counted in one))
    assert both.energy_per_sample() == pytest.approx(both.energy() / 2)
    assert synaptic_operations(net, x, samples=4).energy_per_sample() == both.energy() / 4
    header, _, conv, linear, _, total, energy = repr(both).splitlines()
    assert header.split() == ["layer", "rate", "dense", "ACs", "MACs"]
    assert conv.split()[::4] == ["0", f"{both.layers[0].macs:,}"] and linear.startswith("3 ")
    assert total.split() == ["total", *(f"{n:,}" for n in (both.dense, both.acs, both.macs))]
    assert energy == f"{both.energy_per_sample():,.6g} pJ per sample (2 in the input)"
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        synaptic_operations(net, x, samples=0)


def test_signed_spikes_add_and_subtract():
    layer, spikes = nn.Linear(6, 4, bias=False).eval(), torch.randint(-1, 2, (5, 6)).float()
    (counted,) = synaptic_operations(layer, spikes).layers
    assert (counted.acs, counted.macs) == (4 * int((spikes != 0).sum()), 0)


def test_a_weight_that_all_samples_share_counts_for_each():
    product, weight = MatrixProduct(), torch.randn(2, 3, 4)
    spikes = torch.randint(0, 2, (5, 2, 4, 6)).float()
    (counted,) = synaptic_operations(_Pair(product, (weight, spikes)).eval(), spikes[0]).layers
    assert counted.dense == 5 * 2 * 3 * 4 * 6
    assert counted.acs == 3 * int(spikes.sum())


def test_products_of_attentions_add_where_one_side_is_spikes():
    product = MatrixProduct()
    spikes = (torch.rand(2, 3, 4) < 0.5).float()
    counts = torch.randint(0, 3, (2, 4, 5)).float()
    for pair in ((spikes, counts), (counts.mT, spikes.mT)):
        (layer,) = synaptic_operations(_Pair(product, pair).eval(), torch.zeros(2)).layers
        wanted = sum(
            bool(spikes[n, i, j]) and bool(counts[n, j, k])
            for n in range(2)
            for i in range(3)
            for j in range(4)
            for k in range(5)
        )
        assert (layer.acs, layer.macs, layer.dense) == (wanted, 0, 2 * 3 * 4 * 5)
        assert layer.rate == pytest.approx(float(spikes.double().mean()))
    real = counts + 0.5
    (layer,) = synaptic_operations(_Pair(product, (real.mT, real)).eval(), torch.zeros(2)).layers
    assert (layer.acs, layer.macs) == (0, 2 * 5 * 4 * 5)


class _Pair(nn.Module):
    def __init__(self, product, pair):
        super().__init__()
        self.product, self.pair = product, pair

    def forward(self, x):
        return self.product(self.pair)


class _OwnSteps(nn.Module):
    """Takes images and makes the steps itself, or takes a sequence and gives its mean."""

    def __init__(self, repeats):
        super().__init__()
        self.repeats, self.fc, self.fire = repeats, nn.Linear(6, 4), host.neuron.IFNode()

    def forward(self, x):
        steps = [x] * self.repeats if self.repeats else x
        y = torch.stack([self.fire(self.fc(step)) for step in steps])
        return y if self.repeats else y.mean(0)


@pytest.mark.parametrize(("repeats", "shape"), [(5, (2, 6)), (2, (3, 6)), (0, (5, 2, 6))])
def test_samples_of_a_network_that_makes_or_ends_its_steps(repeats, shape):
    net, x = _OwnSteps(repeats).eval(), torch.rand(shape)
    steps, samples = (repeats, shape[0]) if repeats else shape[:2]
    counted = synaptic_operations(net, x)
    assert counted.samples == samples
    assert cost.flops(net, x) == steps * 24
