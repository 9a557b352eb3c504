"""Networks of all kinds convert: their error falls with T, and both step modes agree."""

import pytest
import torch
import torch.nn.functional as F
from ann2snn import oracle
from torch import fx, nn

from sj_ext import ann2snn, host
from sj_ext.ann2snn import ComposedRecipe, convert, fold_scales, threshold
from sj_ext.ann2snn.observe import sites
from sj_ext.ann2snn.site import CountMaxPool, Scaler

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """Sums, concatenation, a module in two places, calls, batch norms, views."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.act = nn.ReLU(inplace=True)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.short = nn.Conv2d(6, 6, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(12, 7, bias=False)
        self.norm = nn.BatchNorm1d(7)
        self.out = nn.Linear(7, 4)

    def forward(self, x):
        x = self.act(self.stem(x))
        y = self.act(self.shared(x) + self.short(x))
        y = F.relu(self.shared(y)) + x
        y = torch.cat([self.act(y), x], 1)
        y = F.relu6(self.depthwise(self.pool(y)))
        y = F.dropout(y, 0.5, self.training).mean((2, 3)).view(y.size(0), -1)
        y = self.norm(self.fc(y)).clamp(min=0)
        return self.out(y)


def warmed(net, n=32):
    """The network in float64 after a few batches for its statistics."""
    net = net.double().train()
    with torch.no_grad():
        for _ in range(10):
            net(torch.randn(n, *SHAPE, dtype=torch.float64))
    return net.eval()


def images(n=32):
    return torch.randn(n, *SHAPE, dtype=torch.float64)


def of(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


def conv(out=5, inp=3):
    return nn.Conv2d(inp, out, 3, padding=1)


NETS = {
    "residual": (Residual, {}),
    "max pooling": (lambda: of(conv(), nn.ReLU(), nn.MaxPool2d(2), conv(4, 5), nn.ReLU()), {}),
    "leaky": (lambda: of(conv(), nn.LeakyReLU(0.2)), {"negative": "leaky"}),
    "counted": (lambda: of(conv(), nn.ReLU(), conv(4, 5), nn.ReLU()), {"negative": "counted"}),
    "upsampling": (lambda: of(conv(), nn.ReLU(), nn.Upsample(scale_factor=2), conv(2, 5)), {}),
    "tokens": (
        lambda: nn.Sequential(
            nn.Flatten(2), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)
        ),
        {"threshold": threshold.Maximum("channel")},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_error_falls_and_step_modes_agree(name):
    make, options = NETS[name]
    net, cal = warmed(make()), images()
    snn = convert(net, ComposedRecipe(cal, **{"threshold": threshold.Maximum(), **options}))
    x = cal[:4]
    error = ann2snn.evaluate(snn, [x], (4, 16, 128), reference=net)
    assert error[128] < 0.5 * error[16] and error[16] < error[4]
    single = oracle.run(snn, x, 5)[-1]
    host.functional.set_step_mode(snn, "m")
    with torch.no_grad():
        multi = snn(x.expand(5, *x.shape))
    assert multi.shape[:2] == (5, 4)
    torch.testing.assert_close(multi.mean(0), single)


@pytest.mark.parametrize("name", NETS)
def test_folded_scales_give_the_same_outputs(name):
    make, options = NETS[name]
    net, cal = warmed(make()), images()
    options = {"threshold": threshold.Percentile(99.0, "channel"), **options}
    recipe = ComposedRecipe(cal, calibrations=[ann2snn.calibrate.Bias()], T=4, **options)
    snn = convert(net, recipe)
    folded = fold_scales(snn)
    torch.testing.assert_close(oracle.run(folded, cal[:3], 6), oracle.run(snn, cal[:3], 6))
    scalers = sum(isinstance(m, Scaler) for m in folded.modules())
    before = sum(isinstance(m, Scaler) for m in snn.modules())
    assert scalers < before
    if name in ("max pooling", "counted"):
        assert scalers == 0


def test_a_residual_network_of_torchvision_converts():
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.Identity()
    x = torch.randn(8, 3, 16, 16)
    net.train()
    with torch.no_grad():
        for _ in range(4):
            net(torch.randn(16, 3, 16, 16))
    snn = convert(net.eval(), ComposedRecipe(x, threshold=threshold.Maximum()))
    error = ann2snn.evaluate(snn, [x[:2]], (4, 16, 64), reference=net)
    assert error[64] < 0.5 * error[16] and error[16] < error[4]
    nodes = sum(isinstance(m, ann2snn.ConversionIFNode) for m in snn.modules())
    assert nodes == 17


def test_counted_max_pooling_is_exact_in_the_mean():
    pool, x = nn.MaxPool2d(3, 2, 1), torch.randn(9, 2, 3, 7, 7, dtype=torch.float64)
    for mode in ("s", "m"):
        gate = CountMaxPool(pool, mode)
        for _ in range(2):
            y = gate(x) if mode == "m" else torch.stack([gate(step) for step in x])
            torch.testing.assert_close(y.mean(0), pool(x.mean(0)))
            host.functional.reset_net(gate)
        torch.testing.assert_close(torch.cat([gate(p)[None] if mode == "s" else gate(p[None]) for p in x]).mean(0), pool(x.mean(0)))  # fmt: skip  # noqa: E501


def test_max_pooling_is_a_choice():
    net, x = warmed(NETS["max pooling"][0]()), images()
    with pytest.raises(ValueError, match="max pooling"):
        convert(net, ComposedRecipe(x, maxpool="raise"))
    before = convert(net, ComposedRecipe(x, threshold=threshold.Maximum(), maxpool="pre_spike"))
    assert not any(isinstance(m, CountMaxPool) for m in before.modules())
    first = [n.target for n in before.graph.nodes if n.op == "call_module"]
    assert first.index("2") < first.index("1.if_node")
    count = convert(net, ComposedRecipe(x, threshold=threshold.Maximum()))
    error = [ann2snn.evaluate(snn, [x[:8]], (128,), reference=net)[128] for snn in (count, before)]
    assert error[0] < 0.1


def test_data_come_in_any_form():
    net, x = warmed(NETS["counted"][0]()), images(40)
    y = torch.arange(40) % 4
    forms = [
        x,
        (x, y),
        list(x.split(7)),
        iter(x.split(7)),
        [(part, 0) for part in x.split(9)],
        [{"image": part, "label": y[:9]} for part in x.split(9)],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8),
    ]
    found = set()
    for form in forms:
        snn = convert(net, ComposedRecipe(form, threshold=threshold.MeanSquare(4)))
        found.add(tuple(s.threshold.item() for s in sites(snn).values()))
    first = next(iter(found))
    assert all(other == pytest.approx(first) for other in found)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, ValueError),
        ([], ValueError),
        (3, TypeError),
        ([{"a": 1, "b": 2}], ValueError),
        (["text"], TypeError),
        ([()], ValueError),
    ],
)
def test_wrong_data_are_named(data, error):
    with pytest.raises(error, match="calibration"):
        convert(warmed(NETS["counted"][0]()), ComposedRecipe(data))


def test_an_input_that_does_not_fit_is_named():
    net = warmed(NETS["counted"][0]())
    with pytest.raises(ValueError, match=r"shape \(2, 5, 8, 8\)"):
        convert(net, ComposedRecipe(torch.randn(4, 5, 8, 8)))


def test_what_cannot_be_converted_is_named_with_a_way_out():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.gelu = nn.Linear(5, 5), nn.ReLU(), nn.GELU()

        def forward(self, x):
            y = self.act(self.a(x))
            return self.gelu(y) * torch.sigmoid(y)

    with pytest.raises(ValueError) as caught:
        convert(Gated(), ComposedRecipe(torch.randn(4, 5)))
    for told in ("'gelu' (GELU)", "'sigmoid'", "'mul'", "unsupported='keep'"):
        assert told in str(caught.value)
    snn = convert(Gated(), ComposedRecipe(torch.randn(4, 5), unsupported="keep"))
    assert snn(torch.randn(2, 5)).shape == (2, 5)


def test_a_network_with_nothing_to_convert_raises():
    with pytest.raises(ValueError, match="no activation"):
        convert(nn.Linear(3, 3), ComposedRecipe(torch.randn(4, 3)))
    with pytest.raises(ValueError, match="IFNode"):
        convert(
            nn.Sequential(nn.Linear(3, 3), nn.ReLU(), host.neuron.IFNode()),
            ComposedRecipe(torch.randn(4, 3)),
        )
    with pytest.raises(ValueError, match="Hardtanh from -1"):
        convert(nn.Sequential(nn.Linear(3, 3), nn.Hardtanh()), ComposedRecipe(torch.randn(4, 3)))
    with pytest.raises(TypeError, match="recipe"):
        convert(nn.ReLU(), threshold.Maximum())


def test_layers_of_the_host_convert_too():
    layer = host.layer
    net = nn.Sequential(layer.Conv2d(3, 4, 3), nn.ReLU(), layer.Flatten(), layer.Linear(144, 2))
    x = torch.randn(6, *SHAPE)
    snn = convert(net, ComposedRecipe(x))
    host.functional.set_step_mode(snn, "m")
    assert snn(x.expand(3, *x.shape)).shape == (3, 6, 2)
    assert type(net[0]) is layer.Conv2d


def test_a_traced_graph_a_leaf_and_a_fixed_argument_are_accepted():
    class Inner(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x  # cannot be traced

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.inner = nn.Linear(5, 5), Inner()

        def forward(self, x, double=False):
            x = F.relu(self.a(x))
            return self.inner(x) if double else x

    x = torch.rand(6, 5)
    net = Net()
    with pytest.raises(ValueError, match="leaf_modules"):
        convert(net, ComposedRecipe(x))
    fixed = {"double": False}
    snn = convert(net, ComposedRecipe(x), concrete_args=fixed)
    again = convert(fx.symbolic_trace(net, fixed), ComposedRecipe(x))
    torch.testing.assert_close(oracle.run(snn, x, 4), oracle.run(again, x, 4))
    with pytest.raises(ValueError, match="Inner"):
        convert(net, ComposedRecipe(x), leaf_modules=[Inner], concrete_args={"double": True})
    kept = ComposedRecipe(x, unsupported="keep")
    snn = convert(net, kept, leaf_modules=[Inner], concrete_args={"double": True})
    assert snn(x).shape == (6, 5)
