"""Resources count what an independent count finds."""

import pytest
import torch
from pruning.nets import mlp, narrow_sew, narrow_vgg, spiking_mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_ext import host
from sj_ext.layer import TemporalReversible
from sj_ext.pruning import (
    GlobalMagnitudePruner,
    LatencyTable,
    MinimaxPruner,
    Resource,
    measure_latency,
    resources,
)
from sj_ext.pruning.layers import weight_layers
from sj_ext.pruning.resources import LayerInfo, device_name, layer_positions


def bound(res, model):
    res.bind(model, [LayerInfo(n, m, m.weight.numel()) for n, m in weight_layers(model).items()])
    return res


@pytest.mark.parametrize("build", [narrow_vgg, narrow_sew])
def test_macs_equal_those_of_torchs_own_counter(build):
    from torch.utils.flop_counter import FlopCounterMode

    model = build().eval()
    x = torch.rand(2, 3, 3, 32, 32)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    places = layer_positions(model, x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    ours = sum(places[n] * m.weight.numel() for n, m in weight_layers(model).items())
    assert 2 * ours == counter.get_total_flops()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5)),
        (nn.Conv3d(2, 3, 2, dilation=2), (1, 2, 5, 6, 7)),
        (nn.Linear(4, 6), (7, 4)),
    ],
)
def test_macs_of_each_kind_of_layer(module, shape):
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.rand(shape)
    with FlopCounterMode(display=False) as counter:
        module(x)
    places = layer_positions(nn.Sequential(module), x)["0"]
    want = counter.get_total_flops() / 2
    if getattr(module, "groups", 1) == 2 and isinstance(module, nn.ConvTranspose1d):
        want = 2 * 5 * 4 * 3 * 3  # N, length, inputs, outputs per group, kernel
    assert places * module.weight.numel() == want


def test_synops_and_energy_from_the_users_own_forwards():
    model = spiking_mlp()
    rates = {}

    def watch(name):
        def hook(module, inputs):
            rates[name] = float((inputs[0] != 0).double().mean())

        return hook

    for name, module in weight_layers(model).items():
        module.register_forward_pre_hook(watch(name))
    synops, energy = bound(resources.synops(), model), bound(resources.energy(), model)
    assert not synops.ready
    x = torch.rand(4, 8, 12) * (torch.rand(4, 8, 12) > 0.4)
    model.eval()
    model(x)
    synops.update()
    assert not synops.ready, "evaluation is not training"
    host.functional.reset_net(model)
    model.train()
    model(x)
    for res in (synops, energy):
        res.update()
        assert res.ready
    macs = {n: 32 * m.weight.numel() for n, m in weight_layers(model).items()}
    kept = [100, 200, 50]
    shares = dict(
        zip(macs, (k / n * 32 for k, n in zip(kept, macs.values(), strict=True)), strict=True)
    )
    want = sum(macs[n] * rates[n] * shares[n] for n in macs)
    assert synops(kept) == pytest.approx(want / sum(macs[n] * rates[n] for n in macs))
    # the first layer reads real numbers, the others spikes
    joule = {n: macs[n] * (4.6 if n == "0" else 0.9 * rates[n]) for n in macs}
    want = sum(joule[n] * shares[n] for n in macs) / sum(joule.values())
    assert energy(kept) == pytest.approx(want)


class _Recomputed(nn.Module):
    """Two of its layers run again for their gradients."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.middle = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        levels = [_Level(layer) for layer in self.middle]
        memory = "reversible" if how == "reversible" else "autograd"
        self.cell = TemporalReversible(levels, [0.5, 0.5], feedback=False, memory=memory)

    def forward(self, x):
        y = self.first(x)
        if self.how.startswith("checkpoint"):
            reentrant = self.how.endswith("reentrant")
            y = checkpoint(self._cell, y, use_reentrant=reentrant)
        else:
            y = self._cell(y)
        return self.last(y).mean(0)

    def _cell(self, y):
        self.cell.reset()
        return self.cell([y] * 3)


class _Level(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, below, above=None):
        return self.layer(below)


@pytest.mark.parametrize("how", ["reversible", "checkpoint", "checkpoint, reentrant"])
def test_layers_that_run_again_for_their_gradients_count_once(how):
    plain, recomputed = _Recomputed("autograd"), _Recomputed(how)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(4, 6)
    measured = []
    for model in (plain, recomputed):
        synops = bound(resources.synops(), model)
        model(x).sum().backward()
        synops.update()
        measured.append(synops.measured)
    assert measured[0] == measured[1]


def test_rates_average_over_steps_and_rest_while_frozen():
    model = nn.Sequential(nn.Linear(4, 3))
    res = bound(resources.synops(momentum=0.75), model)
    model(torch.ones(2, 4))
    res.update()
    model(torch.zeros(2, 4))
    res.update()
    assert res.measured["0"][1] == 0.75
    res.freeze(True)
    model(torch.ones(2, 4))
    res.update()
    assert res.measured["0"][1] == 0.75
    res.close()
    assert not model[0]._forward_hooks


def test_latency_interpolates_and_never_rises_as_weights_go(tmp_path):
    model, x = mlp(), torch.rand(4, 12)
    table = measure_latency(model, x, densities=(0.1, 0.5), repeats=2)
    assert table.device == device_name("cpu") and table.densities == [0.1, 0.5, 1.0]
    table.seconds = {"0": [1.0, 3.0, 2.0], "2": [1.0, 2.0, 4.0], "4": [0.0, 0.0, 1.0]}
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == table
    res = bound(resources.latency(again), model)
    cost = {name: LayerInfo(name, m, m.weight.numel()) for name, m in weight_layers(model).items()}
    assert res.cost(cost["0"], 0.5) == 2.0  # run it dense then
    assert res.cost(cost["0"], 0.3) == pytest.approx(1.5)
    assert res.cost(cost["2"], 0.75) == 3.0
    assert res.cost(cost["2"], 0.05) == 0.5
    assert res([480, 1600, 240]) == 1.0
    pruner = MinimaxPruner(
        model, budget=0.5, resource="latency", latency_table=table, first=True, schedule=8
    )
    for _ in range(8):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.0)
        pruner.step()
    assert pruner.finished and pruner.resource <= 0.5


def test_a_users_own_resource_by_subclass():
    class Squares(Resource):
        name = "squares"

        def cost(self, layer, share):
            return (layer.weights * share) ** 2

    res = bound(Squares(), mlp())
    total = 480**2 + 1600**2 + 240**2
    assert res([480, 1600, 0]) == pytest.approx((480**2 + 1600**2) / total)
    assert res.slope(1, 800) == pytest.approx(2 * 1600**2 * 0.5 / total)


def test_a_built_in_resource_takes_an_argument_through_every_pruner_by_one_entry(monkeypatch):
    class Scaled(resources.Resource):
        name = "scaled"
        arguments = ("factor",)

        def __init__(self, factor=None):
            super().__init__()
            self.factor = factor

        def cost(self, layer, share):
            return self.factor * layer.weights * share

    monkeypatch.setitem(resources.BUILT_IN, "scaled", Scaled)
    for make in (MinimaxPruner, GlobalMagnitudePruner):
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
        budget = {"params": 0.5, "scaled": 0.6}
        pruner = make(model, budget=budget, schedule=8, factor=3, first=True, last=True)
        assert [type(each) for each in pruner.resources] == [resources.base.Params, Scaled]
        assert pruner.resources[1].factor == 3
        with pytest.raises(TypeError, match="unexpected keyword argument 'factr'.*'factor'"):
            make(model, budget=0.5, factr=3)
