"""A converted network does what the equations say, on both hosts and in both step modes."""

import copy
import itertools
import warnings
from itertools import pairwise

import numpy
import pytest
import torch
from ann2snn import oracle
from torch import nn

from sj_ext import ann2snn, host
from sj_ext.ann2snn import ComposedRecipe, QuantizedClip, convert, presets, threshold
from sj_ext.ann2snn.observe import sites

WIDTHS = (5, 9, 8, 7, 3)


def net_of(activation=nn.ReLU):
    layers = []
    for i, (a, b) in enumerate(pairwise(WIDTHS)):
        layers += [nn.Linear(a, b), *([activation()] if i < len(WIDTHS) - 2 else [])]
    return nn.Sequential(*layers).double()


def weights_of(net):
    return [(m.weight.detach(), m.bias.detach()) for m in net if isinstance(m, nn.Linear)]


def activations(net, x):
    values = []
    for module in net:
        x = module(x)
        if not isinstance(module, nn.Linear):
            values.append(x.detach())
    return values


def data(n=60):
    return torch.randn(n, WIDTHS[0], dtype=torch.float64)


RECIPES = {
    "max": ({"threshold": threshold.Maximum(), "v_init": 0.0}, {"v0": 0.0}),
    "half": ({"threshold": threshold.Percentile(97.0), "v_init": 0.5}, {"v0": 0.5}),
    "shift": (
        {"threshold": threshold.Maximum(), "v_init": 0.0, "shift_T": 9, "T": 9},
        {"delta": 0.5 / 9},
    ),
    "hard": ({"threshold": threshold.Maximum(), "v_init": 0.0, "reset": "hard"}, {"reset": "hard"}),
    "counted": (
        {"threshold": threshold.Maximum("channel"), "negative": "counted"},
        {"v0": 0.5, "negative": ("counted", 1e-3)},
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_outputs_are_those_of_the_equations(name):
    options, told = RECIPES[name]
    net, cal, x, steps = net_of(), data(), data(4), 9
    snn = convert(net, ComposedRecipe(cal, **options))
    theta = [site.threshold for site in sites(snn).values()]
    told = {k: [v * t for t in theta] if k in ("v0", "delta") else v for k, v in told.items()}
    wanted = oracle.chain(weights_of(net), theta, x, steps, **told)
    torch.testing.assert_close(oracle.run(snn, x, steps)[-1], wanted.mean(0).detach())
    host.functional.set_step_mode(snn, "m")
    with torch.no_grad():
        torch.testing.assert_close(snn(x.expand(steps, *x.shape)), wanted.detach())


@pytest.mark.parametrize("per", ["layer", "channel", "neuron"])
def test_statistics_are_those_over_all_data_at_once(per):
    net, cal = net_of(), data(50)
    batches = list(cal.split(7))
    for rule, statistic in [
        (threshold.Maximum(per), lambda a, axis: a.max(axis)),
        (threshold.Percentile(90.0, per), lambda a, axis: numpy.percentile(a, 90.0, axis)),
    ]:
        snn = convert(net, ComposedRecipe(batches, threshold=rule))
        for site, a in zip(sites(snn).values(), activations(net, cal), strict=True):
            wanted = statistic(a.numpy(), None if per == "layer" else 0).clip(1e-6)
            numpy.testing.assert_allclose(site.threshold.numpy().ravel(), wanted.ravel(), 1e-12)


def test_a_quantile_keeps_only_the_top_and_stays_exact(monkeypatch):
    from sj_ext.ann2snn import threshold as module

    monkeypatch.setattr(module, "_KEPT", 50)
    values = torch.rand(3, 5000, dtype=torch.float64)
    quantile = module._Quantile(0.99)
    for part in values.split(100, 1):
        quantile.add(part, 0)
    assert quantile.kept.shape[1] < 1000
    torch.testing.assert_close(quantile.result(), torch.quantile(values, 0.99, dim=1))
    rising = module._Quantile(0.99)
    with pytest.warns(UserWarning, match="shuffle"):
        for part in values.sort(1, descending=True).values.split(100, 1):
            rising.add(part, 0)
        rising.result()


def test_mean_square_minimises_over_its_grid():
    net, cal, steps = net_of(), data(40), 5
    rule = threshold.MeanSquare(steps, shift=0.5)
    snn = convert(net, ComposedRecipe(list(cal.split(9)), threshold=rule))
    for site, a in zip(sites(snn).values(), activations(net, cal), strict=True):
        errors = {}
        for i in range(95):
            theta = float(a.max()) * (1 - 0.01 * i)
            stairs = (a * steps / theta + 0.5).floor().clamp(0, steps) * theta / steps
            errors[theta] = float((stairs - a).square().sum())
        best = min(errors, key=errors.get)
        assert site.threshold.item() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_run_time_thresholds_are_the_largest_currents_met(reset):
    net, cal, steps = net_of(), data(10), 12
    recipe = presets.spike_norm(cal, steps, reset=reset)
    found = [site.threshold.item() for site in sites(convert(net, recipe)).values()]
    # the largest current equals the threshold: rounding says whether that neuron fires or waits,
    # in each layer, and what the next layers meet is one of these
    readings = []
    for ties in itertools.product((1 - 1e-13, 1 + 1e-13), repeat=2):
        values, wanted = cal.expand(steps, *cal.shape), []
        for (weight, bias), tie in zip(weights_of(net)[:-1], (*ties, 1.0), strict=True):
            current = values @ weight.T + bias
            wanted.append(float(current.max()))
            values = oracle.neuron(current, tie * wanted[-1], reset=reset) / tie
        readings.append(wanted)
    met = [wanted for wanted in readings if found == pytest.approx(wanted, rel=1e-12)]
    assert met, (found, readings)
    scaled = sites(convert(net, presets.rmp(cal, steps, alpha=0.4)))
    if reset == "soft":
        assert [s.threshold.item() for s in scaled.values()] == pytest.approx(
            [0.4 * theta for theta in met[0]], rel=1e-12
        )


def test_levels_and_bounds_make_the_network_exact_layer_by_layer():
    net, x, levels = net_of(lambda: QuantizedClip.qcfs(6, 0.8)), data(5), 6
    snn = convert(net, presets.qcfs())  # no data needed
    first = next(iter(sites(snn).values()))
    host.functional.set_step_mode(snn, "m")
    spikes = []
    handle = first.if_node.register_forward_hook(lambda m, a, y: spikes.append(y))
    with torch.no_grad():
        snn(x.expand(levels, *x.shape))
    handle.remove()
    wanted = activations(net, x)[0]
    torch.testing.assert_close(spikes[0].mean(0) * first.threshold, wanted)


def test_error_falls_and_the_mean_output_is_the_networks_value():
    """For a regression too: the last layer does not spike, so the limit is the value itself."""
    net, cal = net_of(), data(200)
    x = cal[:20]
    snn = convert(net, ComposedRecipe(cal, threshold=threshold.Maximum()))
    error = ann2snn.evaluate(snn, [x], (8, 64, 512, 4096), reference=net)
    assert error[4096] < error[512] < error[64] < error[8]
    assert error[4096] < 2e-3
    worst = ann2snn.evaluate(
        snn, [x], (64,), reference=net, metric=lambda out, ref: (out - ref).abs().max()
    )
    assert worst[64] == pytest.approx(error[64])


def test_the_network_is_left_as_it_is():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).train()
    before, kinds = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    convert(net, ComposedRecipe(torch.randn(20, 5)))
    assert net.training and [type(m) for m in net.modules()] == kinds
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_hosts_converter_runs_the_same_recipe():
    if not hasattr(host.ann2snn, "FXConversionRecipe"):
        pytest.skip("0.0.0.0.14 has no recipes; ann2snn.convert is the call there")
    net, cal, x = net_of(), data(), data(3)
    recipe = ComposedRecipe(cal, calibrations=[ann2snn.calibrate.Bias()], T=6)
    assert isinstance(recipe, host.ann2snn.FXConversionRecipe)
    theirs = host.ann2snn.Converter(recipe).convert(net)
    torch.testing.assert_close(
        oracle.run(theirs, x, 6), oracle.run(convert(net, recipe), x, 6), rtol=0, atol=0
    )


def host_made(net, cal, mode):
    if host.GENERATION == 1:
        return host.ann2snn.Converter([(cal, cal)], mode=mode)(copy.deepcopy(net))
    recipe = host.ann2snn.RateCodingRecipe([(cal, cal)], mode=mode)
    return host.ann2snn.Converter(recipe).convert(copy.deepcopy(net))


def test_the_hosts_own_conversion_is_a_special_case():
    net, cal, x = net_of().float(), data().float(), data(6).float()
    ours = convert(net, ComposedRecipe(cal, threshold=threshold.Maximum(), v_init=0.0))
    theirs = host_made(net, cal, "max")
    torch.testing.assert_close(
        oracle.run(theirs, x, 16)[-1], oracle.run(ours, x, 16)[-1], rtol=0, atol=1e-5
    )


def test_dead_layers_and_channels_are_clamped_and_named():
    net = net_of()
    with torch.no_grad():
        net[0].weight[2].zero_()
        net[0].bias[2] = -1.0
    with pytest.warns(UserWarning, match=r"layer '1' has 1 dead of 9"):
        convert(net, ComposedRecipe(data(), threshold=threshold.Maximum("channel")))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1.0)
    with pytest.warns(UserWarning, match="'1' is never active"):
        snn = convert(net, ComposedRecipe(data()))
    assert bool(oracle.run(snn, data(2), 4).isfinite().all())


def test_a_recipe_can_be_used_again_for_another_network():
    recipe = ComposedRecipe(data(), calibrations=[ann2snn.calibrate.Potential()], T=4)
    first, second = net_of(), net_of()
    one = oracle.run(convert(first, recipe), data(2) * 0 + 1, 4)
    convert(second, recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(oracle.run(convert(first, recipe), data(2) * 0 + 1, 4), one)
