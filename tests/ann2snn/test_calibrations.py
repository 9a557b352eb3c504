"""Calibrations do what their formulas say, layer after layer, and training ones lower the error."""

import copy

import pytest
import torch
from ann2snn import oracle
from ann2snn.test_convert import activations, data, host_made, net_of, weights_of
from torch import nn

from sj_ext import ann2snn
from sj_ext.ann2snn import ComposedRecipe, QuantizedClip, calibrate, convert, presets, threshold
from sj_ext.ann2snn.calibrate import ProxyFineTuning, Weights
from sj_ext.ann2snn.observe import sites

T = 6


def forward(net, thetas, v0, delta, gain, x):
    """Mean outputs of every layer by the oracle."""
    values, means = x.expand(T, *x.shape), []
    for i, (weight, bias) in enumerate(weights_of(net)[:-1]):
        current = values @ weight.T + bias
        values = oracle.neuron(current, thetas[i], v0[i], delta[i], gain[i])
        means.append(values.mean(0))
    return means


@pytest.mark.parametrize("kind", ["bias", "potential", "gain"])
@pytest.mark.parametrize("per", ["layer", "channel", "neuron"])
def test_corrections_are_those_of_the_formula_in_order(kind, per):
    if kind == "gain" and per == "neuron":
        per = "channel"
    net, cal = net_of(), data(30)
    part = {
        "bias": calibrate.Bias(per),
        "potential": calibrate.Potential(per),
        "gain": calibrate.RateGain(per=per),
    }[kind]
    recipe = ComposedRecipe(
        list(cal.split(8)), threshold=threshold.Maximum(), calibrations=[part], T=T
    )
    snn = convert(net, recipe)
    layers = list(sites(snn).values())
    thetas = [site.threshold for site in layers]
    v0 = [0.5 * theta for theta in thetas]
    delta, gain = [0.0] * 3, [1.0] * 3
    axis = (0, 1) if per == "layer" else 0
    for i, a in enumerate(activations(net, cal)):
        mean = forward(net, thetas, v0, delta, gain, cal)[i]
        lack = (a - mean).mean(axis)
        if kind == "bias":
            delta[i] = lack
        elif kind == "potential":
            v0[i] = v0[i] + T * lack
        else:
            rate = mean.mean(axis)
            share = torch.minimum(a, thetas[i]).mean(axis) / rate
            gain[i] = torch.where(rate > 0, share, torch.ones_like(share)).clamp(min=1)
    x = data(5)
    values = x.expand(T, *x.shape)
    for i, (weight, bias) in enumerate(weights_of(net)):
        values = values @ weight.T + bias
        if i < 3:
            values = oracle.neuron(values, thetas[i], v0[i], delta[i], gain[i])
    torch.testing.assert_close(oracle.run(snn, x, T)[-1], values.mean(0).detach())


def test_potentials_bring_the_mean_output_nearer():
    """Over several networks: one alone may be as near before, by chance."""
    errors = {"plain": 0.0, "calibrated": 0.0}
    for _ in range(8):
        net, cal = net_of(), data(200)
        for name, parts in (("plain", []), ("calibrated", [calibrate.Potential()])):
            snn = convert(net, ComposedRecipe(cal, v_init=0.0, T=T, calibrations=parts))
            with torch.no_grad():
                error = (oracle.run(snn, cal, T)[-1] - net(cal)).square().mean()
            errors[name] += float(error)
    assert errors["calibrated"] < 0.7 * errors["plain"]


@pytest.mark.parametrize("weights", [Weights(1e-3, 60), ProxyFineTuning(10, 0.05, force=True)])
def test_training_brings_layers_nearer_to_their_activations(weights):
    net, cal = net_of(), data(128)
    before = copy.deepcopy(net.state_dict())
    recipe = {"threshold": threshold.Maximum(), "v_init": 0.0, "T": T}
    plain = convert(net, ComposedRecipe(cal, **recipe))
    tuned = convert(net, ComposedRecipe(cal, calibrations=[weights], **recipe))
    for (_, old), new in zip(net.state_dict().items(), before.values(), strict=True):
        assert torch.equal(old, new)

    def errors(snn):
        return sum(layer.error[T] for layer in ann2snn.report(snn, cal, net, T).layers[1:])

    assert errors(tuned) < errors(plain)


def test_fine_tuning_needs_labels_unless_forced():
    net, cal = net_of(), data(20)
    with pytest.raises(ValueError, match=r"no labels, which ProxyFineTuning needs"):
        convert(net, ComposedRecipe(cal, calibrations=[ProxyFineTuning()], T=T))
    labels = net(cal).argmax(1)
    snn = convert(net, ComposedRecipe((cal, labels), calibrations=[ProxyFineTuning()], T=T))
    plain = convert(net, ComposedRecipe(cal, T=T))
    score = [ann2snn.evaluate(s, (cal, labels), (T,))[T] for s in (snn, plain)]
    assert score[0] >= score[1]  # what does not help is put back


def test_a_network_that_the_host_made_can_be_refined():
    net, cal = net_of().float(), data().float()
    snn = host_made(net, cal, "max")
    before = oracle.run(snn, cal[:4], 12)
    ann2snn.refine(snn, [], ann=net)
    torch.testing.assert_close(oracle.run(snn, cal[:4], 12), before, rtol=0, atol=1e-5)
    ann2snn.refine(snn, [calibrate.Potential()], ann=net, calibration=cal, T=12)
    recipe = ComposedRecipe(
        cal,
        threshold=threshold.Maximum(),
        v_init=0.0,
        T=12,
        calibrations=[calibrate.Potential()],
    )
    ours = ann2snn.report(convert(net, recipe)).layers[0]
    theirs = ann2snn.report(snn).layers[0]
    assert theirs.v_init == pytest.approx(ours.v_init, abs=1e-4)
    with pytest.raises(ValueError, match="ann"):
        ann2snn.refine(snn, [], ann=nn.Sequential(nn.Linear(5, 5), nn.ReLU()))


PRESETS = {
    "spike_norm": lambda x: presets.spike_norm(x, 8),
    "rmp": lambda x: presets.rmp(x, 8),
    "spiking_yolo": presets.spiking_yolo,
    "optimal_shift": lambda x: presets.optimal_shift(x, T),
    "calibration_light": lambda x: presets.calibration_light(x, T),
    "calibration_advanced": lambda x: presets.calibration_advanced(x, T, weights=True),
    "optimal_potential": presets.optimal_potential,
    "cq": lambda x: presets.cq(),
    "fast_snn": lambda x: presets.fast_snn(bits=2),
    "qcfs": lambda x: presets.qcfs(),
    "residual_compensation": lambda x: presets.residual_compensation(x, 8),
    "low_latency": lambda x: presets.low_latency(x, T),
    "tsc": lambda x: presets.tsc(x, T),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_converts(name):
    assert set(PRESETS) == set(presets.__all__)
    bounded = name in ("cq", "fast_snn", "qcfs")
    net = net_of((lambda: QuantizedClip(4.0, 3)) if bounded else nn.ReLU)
    snn = convert(net, PRESETS[name](data()))
    y = oracle.run(snn, data(3), 4)
    assert bool(y.isfinite().all()) and bool(ann2snn.report(snn).layers)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"shift_T": 8, "T": 4}, ValueError, "shift_T=8"),
        ({"shift_T": 0, "T": 4}, ValueError, "shift_T"),
        ({"T": 0}, ValueError, "T"),
        ({"threshold": 1.0}, TypeError, "threshold"),
        ({"calibrations": ["bias"]}, TypeError, "calibrations"),
        ({"maxpool": "mean"}, ValueError, "maxpool"),
        ({"unsupported": "drop"}, ValueError, "unsupported"),
        ({"negative": "some"}, TypeError, "negative"),
        ({"reset": "none"}, ValueError, "reset"),
        ({"v_init": "half"}, ValueError, "v_init"),
        ({"negative": "counted", "reset": "hard"}, ValueError, "negative"),
    ],
)
def test_wrong_recipes_are_named(arguments, error, told):
    with pytest.raises(error, match=told):
        ComposedRecipe(data(), **arguments)


def test_a_recipe_for_another_network_is_refused():
    fixed = threshold.Fixed({"1": torch.ones(1), "9": torch.ones(1)})
    with pytest.raises(ValueError, match="'3'"):
        convert(net_of(), ComposedRecipe(threshold=fixed))
    with pytest.raises(ValueError, match=r"'1' \(ReLU\)"):
        convert(net_of(), presets.qcfs())


def test_progressive_tandem_learning_keeps_the_accuracy():
    x = torch.randn(300, 5)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = net_of().float()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    train, val = (x[:200], y[:200]), (x[200:], y[200:])
    snn = ann2snn.progressive_tandem(net, train, val, T=8, patience=2, max_epochs=4, lr=1e-3)
    accuracy = ann2snn.evaluate(snn, val, (8,))[8]
    plain = convert(net, ComposedRecipe(x[:200], v_init=0.0, T=8))
    assert accuracy >= ann2snn.evaluate(plain, val, (8,))[8] - 0.02
    assert accuracy > 0.6
