"""What users of converters complain of, where no other test of the conversion holds it."""

import numpy
import pytest
import torch
from ann2snn import oracle
from ann2snn.test_convert import data, net_of
from torch import nn

from sj_ext import ann2snn
from sj_ext.ann2snn import ComposedRecipe, convert, presets, threshold
from sj_ext.ann2snn.observe import sites


def test_a_percentile_of_more_values_than_a_quantile_of_torch_takes():
    x = torch.randn(4, 1, 2**22 + 25)
    assert x.numel() > 2**24
    net = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    snn = convert(net, ComposedRecipe([x], threshold=threshold.Percentile(99.9)))
    (site,) = sites(snn).values()
    wanted = numpy.percentile(x.clamp(min=0).numpy(), 99.9)
    assert site.threshold.item() == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x.flatten(), 0.999)


def test_a_norm_behind_a_linear_layer_leaves_the_time_loop():
    net = nn.Sequential(
        nn.Linear(5, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
        nn.BatchNorm1d(3),
    ).double()
    for _ in range(20):
        net(torch.randn(50, 5, dtype=torch.float64) * 2 + 1)
    x = data(40)
    snn = convert(net.eval(), ComposedRecipe(x, threshold=threshold.Maximum()))
    assert not any(isinstance(module, nn.BatchNorm1d) for module in snn.modules())
    error = ann2snn.evaluate(snn, [x], (16, 1024), reference=net)
    assert error[1024] < 0.02 and error[1024] < error[16]


def test_a_clipped_threshold_is_what_stops_the_error_from_falling_with_T():
    """Accuracy that rises and then falls: the report tells the share, another rule mends it."""
    net, cal = net_of(), data(150)

    wanted = net(cal).detach()

    def errors(rule):
        snn = convert(net, ComposedRecipe(cal, threshold=rule))
        full = max(layer.saturated for layer in ann2snn.report(snn, cal, T=64).layers)
        outputs = oracle.run(snn, cal, 256)
        return {t: float((outputs[t - 1] - wanted).square().mean()) for t in (32, 256)}, full

    clipped, share = errors(threshold.Percentile(80.0))
    assert clipped[256] > 0.5 * clipped[32] and share > 0.1
    wider, less = errors(threshold.MeanSquare(256, shift=0.5))
    assert wider[256] < 0.1 * clipped[256] and wider[256] < 0.5 * wider[32] and less < 0.05


def test_few_steps_are_enough_for_the_right_recipe():
    x = torch.randn(600, 5)
    y = (x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] > 0).long()
    net = net_of().float()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:400]), y[:400]).backward()
        optimizer.step()
    cal, test, T = x[:400], (x[400:], y[400:]), 4
    ann = float((net(test[0]).argmax(1) == test[1]).double().mean())
    plain = convert(net, ComposedRecipe(cal, threshold=threshold.Maximum(), v_init=0.0))
    quick = convert(net, presets.low_latency(cal, T))
    found = [ann2snn.evaluate(snn, test, (T,))[T] for snn in (plain, quick)]
    assert found[1] > (found[0] + ann) / 2
    silent = [
        sum(layer.silent for layer in ann2snn.report(snn, cal, T=T).layers)
        for snn in (plain, quick)
    ]
    assert silent[0] > silent[1]  # the report says where the steps go
