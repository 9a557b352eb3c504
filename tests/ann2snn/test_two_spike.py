"""Coding by two spikes is the network with floored activations, a window a layer later."""

import pytest
import torch
from ann2snn import oracle
from ann2snn.test_convert import data, net_of, weights_of
from ann2snn.test_networks import Residual, conv, images, warmed
from torch import nn

from sj_ext import ann2snn, host
from sj_ext.ann2snn import ComposedRecipe, TwoSpikeNode, calibrate, convert, presets, threshold
from sj_ext.ann2snn.graph import activation_nodes, prepare, put_submodule
from sj_ext.ann2snn.observe import sites

T = 7


class Floored(nn.Module):
    """The activation that a layer is equal to."""

    def __init__(self, theta, v_init=0.0):
        super().__init__()
        self.theta, self.v_init = theta, v_init

    def forward(self, z):
        return self.theta * (T * z / self.theta + self.v_init).floor().clamp(0, T) / T


@pytest.mark.parametrize("v_init", [0.0, 0.5])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_window_is_sent_in_the_next_one_by_two_spikes_at_most(v_init, step_mode):
    theta = 0.7
    x = torch.randn(3 * T + 2, 4, 5, dtype=torch.float64) * 0.6 + 0.2
    node = TwoSpikeNode(T, theta, v_init, step_mode).double()
    for _ in range(2):  # and again after a reset
        switch = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
        host.functional.reset_net(node)
        assert not switch[:T].any()
        for k in (0, 1):
            count = (x[k * T : (k + 1) * T].sum(0) / theta + v_init).floor().clamp(0, T)
            step = torch.arange(T).view(-1, 1, 1)
            assert torch.equal(switch[(k + 1) * T : (k + 2) * T], (step < count).double())
        changes = switch.diff(dim=0, prepend=torch.zeros_like(switch[:1])).abs()
        assert all(int(part.sum(0).max()) <= 2 for part in changes.split(T))


@pytest.mark.parametrize("v_init", [0.0, 0.5])
def test_a_network_is_that_of_floored_activations_exactly(v_init):
    net, x = net_of(), data(9)
    snn = convert(net, presets.tsc(data(), T, 95.0, v_init=v_init))
    assert ann2snn.latency(snn) == 3 * T
    wanted = x
    for i, (weight, bias) in enumerate(weights_of(net)):
        wanted = wanted @ weight.T + bias
        if i < 3:
            wanted = Floored(list(sites(snn).values())[i].threshold, v_init)(wanted)
    outputs = oracle.run(snn, x, 4 * T)
    last = outputs[-1] * 4 - outputs[3 * T - 1] * 3
    torch.testing.assert_close(last, wanted)
    host.functional.set_step_mode(snn, "m")
    with torch.no_grad():
        multi = snn(x.expand(4 * T, *x.shape))
    torch.testing.assert_close(multi[3 * T :].mean(0), wanted)


NETS = {
    "residual": Residual,
    "max pooling": lambda: nn.Sequential(
        conv(), nn.ReLU(), nn.MaxPool2d(2), conv(4, 5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_sums_concatenation_and_pooling_are_exact_too(name):
    net, cal = warmed(NETS[name]()), images()
    # per channel, a dead branch of a sum would make a tie of what rounding down decides
    rule = threshold.Percentile(99.0, "layer" if name == "residual" else "channel")
    snn = convert(net, presets.tsc(cal, T, threshold=rule))
    floored = prepare(net)
    for layer, site in sites(snn).items():
        assert layer in activation_nodes(floored)
        put_submodule(floored, layer, Floored(site.threshold))
    floored.recompile()
    for network in (snn, ann2snn.fold_scales(snn)):
        error = ann2snn.evaluate(network, [cal[:4]], (T, 2 * T), reference=floored)
        assert error == pytest.approx({T: 0.0, 2 * T: 0.0}, abs=1e-9)
    entry = ann2snn.report(snn, cal[:4], net, T).layers[0]
    assert 0 < entry.rate < 1 and entry.error[T] > 0


def test_only_whole_windows_are_evaluated():
    net, x = net_of(), data(4)
    snn = convert(net, presets.tsc(x, T))
    with pytest.raises(ValueError, match=f"windows of {T} steps of this network, got 4"):
        ann2snn.evaluate(snn, [x], (4,), reference=net)
    assert ann2snn.latency(convert(net, ComposedRecipe(x))) == 0
    assert ann2snn.latency(net) == 0
    with pytest.raises(ValueError, match="two spikes"):
        ann2snn.refine(snn, [calibrate.Bias()], ann=net, calibration=x)


def test_training_goes_on_through_the_switches():
    net, x = net_of(), data(4)
    snn = convert(net, presets.tsc(x, 2))
    host.functional.set_step_mode(snn, "m")
    snn(x.expand(8, *x.shape))[6:].mean(0).square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in snn.parameters())


def test_a_sum_before_max_pooling_is_refused():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.pool, self.b = conv(3), nn.MaxPool2d(2), nn.Linear(48, 2)

        def forward(self, x):
            return self.b(self.pool(self.a(x).relu() + x).flatten(1))

    with pytest.raises(ValueError, match="'pool'.*must follow an activation"):
        convert(Sum(), presets.tsc(torch.rand(4, 3, 8, 8), T))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"negative": "counted"}, "negative"),
        ({"reset": "hard"}, "reset"),
        ({"shift_T": T}, "shift_T"),
        ({"v_init": "learn"}, "v_init"),
        ({"v_init": 1.0}, "v_init"),
        ({"maxpool": "pre_spike"}, "maxpool"),
        ({"threshold": threshold.RunTime(4)}, "threshold"),
        ({"calibrations": [calibrate.Bias()]}, "calibrations"),
        ({"coding": "three_spikes"}, "coding"),
    ],
)
def test_parts_that_only_a_rate_has_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        presets.tsc(data(), T, **options)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"T": 0}, ValueError),
        ({"T": 2.5}, TypeError),
        ({"v_threshold": 0.0}, ValueError),
        ({"v_init": -0.1}, ValueError),
        ({"v_init": "half"}, TypeError),
    ],
)
def test_wrong_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        TwoSpikeNode(**{"T": 4, **arguments})
