"""A folder of recordings as the methods would make it, of a residual network, and its check.

The recordings come from the loops below, which know nothing of the package, in float64.
"""

import io
import json
import re

import numpy
import pytest
import torch
import torch.nn.functional as F
from published import check_conversion as checker

pytest.importorskip("PIL")
from PIL import Image

FIRES = {"then": "activation"}
LAYERS = [
    {"name": "stem", "op": "conv3x3", "from": "input", "weights": 0, "padding": 1, **FIRES},
    {"name": "inner", "op": "conv3x3", "from": "stem", "weights": 1, "padding": 1, "groups": 4,
     **FIRES},
    {"name": "sum", "op": "conv1x1", "from": "inner", "weights": 2, "add": "stem", **FIRES},
    {"name": "pool", "op": "avgpool2", "from": "sum"},
    {"name": "hidden", "op": "linear", "from": "pool", "weights": 3, **FIRES},
    {"name": "logits", "op": "linear", "from": "hidden", "weights": 4, "then": None},
]  # fmt: skip
SHAPES = {0: (4, 3, 3, 3), 1: (4, 1, 3, 3), 2: (4, 4, 1, 1), 3: (6, 64), 4: (3, 6)}
ACTS = ["stem", "inner", "sum", "hidden"]
SIDE, CALIBRATION, TEST, STEPS = 8, 70, 9, (4, 9)


def forward(weights, x, act):
    """The network above; ``act(name, z)`` is what stands for an activation."""
    (w0, b0), (w1, b1), (w2, b2), (w3, b3), (w4, b4) = weights
    stem = act("stem", F.conv2d(x, w0, b0, padding=1))
    inner = act("inner", F.conv2d(stem, w1, b1, padding=1, groups=4))
    total = act("sum", F.conv2d(inner, w2, b2) + stem)
    hidden = act("hidden", F.avg_pool2d(total, 2).flatten(1) @ w3.T + b3)
    return hidden @ w4.T + b4


class Spiking:
    """The network with neurons, run from rest; ``nodes[name]`` holds what a method found."""

    def __init__(self, weights, reset="soft"):
        self.weights, self.reset, self.nodes = weights, reset, {}

    def run(self, x, steps):
        """Mean outputs by step, mean output and largest current of every layer."""
        v, count, sent, largest = {}, {}, {}, {}
        outputs, total = {}, 0.0

        def act(name, z):
            node = self.nodes.get(name)
            largest[name] = max(largest.get(name, 0.0), float(z.max()))
            if node is None:  # not yet converted: what comes behind is not looked at
                return torch.zeros_like(z)
            theta = node["theta"]
            now = v.get(name, torch.zeros_like(z) + node.get("v0", 0.0))
            h = now + node.get("gain", 1.0) * z + node.get("delta", 0.0)
            up = (h >= theta).double()
            after = h - theta * up if self.reset == "soft" else h * (1 - up)
            down = torch.zeros_like(up)
            if node.get("slope"):
                down = (h <= -theta / node["slope"]).double()
                after = after + theta / node["slope"] * down
            if node.get("counted"):
                so_far = count.get(name, torch.zeros_like(z)) + up
                down = ((after <= -1e-3) & (so_far > 0)).double()
                after, count[name] = after + theta * down, so_far - down
            v[name] = after
            sent[name] = sent.get(name, 0.0) + theta * (up - down)
            return theta * (up - down)

        for t in range(1, max(steps) + 1):
            total = total + forward(self.weights, x, act)
            if t in steps:
                outputs[t] = total / t
        return outputs, {name: s / max(steps) for name, s in sent.items()}, largest


def activations(weights, x, function):
    found = {}

    def act(name, z):
        found[name] = function(z)
        return found[name]

    forward(weights, x, act)
    return found


def mean_square(a, steps):
    grid = [float(a.max()) * (1 - 0.01 * i) for i in range(95)]
    errors = [
        float(((a * steps / g).floor().clamp(0, steps) * g / steps - a).square().sum())
        for g in grid
    ]
    return grid[errors.index(min(errors))]


def per_channel(a, q):
    values = numpy.percentile(a.movedim(1, 0).flatten(1).numpy(), q, axis=1)
    return torch.tensor(values).clamp(min=1e-6).view(-1, *[1] * (a.dim() - 2))


def relu(z):
    return z.clamp(min=0)


def leaky(z):
    return torch.where(z > 0, z, 0.1 * z)


class Methods:
    """Each method's neurons, from the calibration images."""

    def __init__(self, weights, cal):
        self.weights, self.cal = weights, cal
        self.a = activations(weights, cal, relu)

    def thresholds(self, rule, a=None, **more):
        found = Spiking(self.weights)
        found.nodes = {name: {"theta": rule(v), **more} for name, v in (a or self.a).items()}
        return found

    def run_time(self, reset, alpha=1.0):
        found = Spiking(self.weights, reset)
        for name in ACTS:
            largest = found.run(self.cal[:64], [64])[2][name]
            found.nodes[name] = {"theta": largest}
        for node in found.nodes.values():
            node["theta"] *= alpha
        return found

    def shifted(self, rule, steps, a):
        found = self.thresholds(rule, a)
        for node in found.nodes.values():
            node["delta"] = node["theta"] / (2 * steps)
        return found

    def calibrated(self, what, steps):
        few = self.cal[:64]
        a = activations(self.weights, few, relu)
        found = self.shifted(lambda v: mean_square(v, steps), steps, a)
        for name in ACTS if what != "none" else []:
            lack = a[name] - found.run(few, [steps])[1][name]
            node = found.nodes[name]
            if what == "light":
                mean = lack.movedim(1, 0).flatten(1).mean(1)
                node["delta"] = node["delta"] + mean.view(-1, *[1] * (lack.dim() - 2))
            else:
                node["v0"] = steps * lack.mean(0)
        return found

    def gains(self, v0):
        found = self.thresholds(lambda v: float(numpy.percentile(v.numpy(), 99.9)))
        for node in found.nodes.values():
            node["v0"] = v0 * node["theta"]
        some = self.cal[:128]
        for name, node in found.nodes.items():
            mean = found.run(some, [32])[1][name].mean()
            wanted = self.a[name][:128].clamp(max=node["theta"]).mean()
            node["gain"] = max(1.0, float(wanted / mean))
        return found


def largest(v):
    return float(v.max())


def percentile(v):
    return float(numpy.percentile(v.clamp(min=0).numpy(), 99.9))


def of_methods(weights, cal):
    """Recordings by name: (network, spiking network for a number of steps)."""
    m = Methods(weights, cal)
    signed = activations(weights, cal, leaky)
    few = activations(weights, cal[:64], relu)
    tight = activations(weights, cal, lambda z: z.clamp(0, 0.4))
    half = {"v0": 0.5}
    made = {
        "base_max": ("relu", m.thresholds(largest)),
        "base_p999": ("relu", m.thresholds(percentile)),
        "r01_spikenorm_hard": ("relu", m.run_time("hard")),
        "r02_rmp_alpha0.5": ("relu", m.run_time("soft", 0.5)),
        "r03_channel_p99": ("relu", m.thresholds(lambda v: per_channel(v, 99.0))),
        "r03_leaky_channel_ibt": ("leaky", m.thresholds(
            lambda v: per_channel(v.clamp(min=0), 99.9), signed, slope=0.1)),
        "r03_leaky_layer_noneg": ("leaky", m.thresholds(percentile, signed)),
        "r04_trelu0.4": ("trelu0.4", lambda T: m.shifted(largest, T, tight)),
        "r05_none_max_T4": ("relu", m.shifted(largest, 4, few)),
        "r05_none_mse_T9": ("relu", m.calibrated("none", 9)),
        "r05_light_T4": ("relu", m.calibrated("light", 4)),
        "r05_potential_T9": ("relu", m.calibrated("potential", 9)),
        "r06_opi_max": ("relu", m.thresholds(largest, **half)),
        "r07_cq5": ("cq5", m.thresholds(lambda v: 0.9999)),
        "r08_fast2_signed": ("fast2", m.thresholds(lambda v: 0.3, counted=True, **half)),
        "r08_fast2_unsigned": ("fast2", m.thresholds(lambda v: 0.3, **half)),
        "r10_qcfs4": ("qcfs4", m.thresholds(lambda v: 0.5, **half)),
        "r11_hu_v0half_beta": ("relu", m.gains(0.5)),
        "r11_hu_v0zero_beta": ("relu", m.gains(0.0)),
    }  # fmt: skip
    for stem, (_, found) in made.items():
        if stem[:3] in ("r06", "r08", "r10"):
            for node in found.nodes.values():
                node["v0"] = node["v0"] * node["theta"]
    return made


def images(folder, name, count):
    files, offsets = [], [0]
    for _ in range(count):
        pixels = (torch.rand(SIDE, SIDE, 3) * 255).byte().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
        offsets.append(offsets[-1] + len(files[-1]))
    jpeg = numpy.frombuffer(b"".join(files), numpy.uint8)
    numpy.savez(
        folder / f"{name}.npz", jpeg=jpeg, offset=offsets, label=[i % 3 for i in range(count)]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("conversion")
    images(path, "train", CALIBRATION + 5)
    images(path, "test", TEST + 2)
    (path / "arch.json").write_text(json.dumps({"input": [3, SIDE, SIDE], "layers": LAYERS}))
    numpy.savez(
        path / "ann_relu_logits.npz",
        labels=[i % 3 for i in range(TEST)],
        test_index=numpy.arange(TEST) + 1,
        cal_index=numpy.arange(CALIBRATION)[::-1] + 2,
    )
    state = {}
    for number, shape in SHAPES.items():
        scale = torch.Size(shape[1:]).numel() ** -0.5
        state[f"W{number}"] = (torch.randn(shape) * scale).numpy()
        state[f"b{number}"] = (torch.randn(shape[0]) * 0.1).numpy()
    weights = [
        tuple(torch.tensor(state[f"{w}{number}"]).double() for w in "Wb") for number in SHAPES
    ]
    numpy.savez(path / "ann_relu.npz", **state)
    loaded = checker.Folder(path, path)
    x, cal = loaded.test[:8].double(), loaded.calibration.double()
    for stem, (network, made) in of_methods(weights, cal).items():
        numpy.savez(path / f"ann_{network}.npz", **state)
        numpy.savez(path / f"{stem}.npz", **recording(stem, made, x))
    return path


def recording(stem, made, x):
    number = re.search(r"_T(\d+)$", stem)
    steps = (int(number[1]),) if number else STEPS
    recorded = {}
    for T in steps:
        found = made(T) if callable(made) else made
        logits = found.run(x, [T])[0][T].numpy()
        recorded["logits" if number else f"logits_T{T}"] = logits
    for name, node in found.nodes.items():
        recorded[f"theta_{name}"] = numpy.asarray(node["theta"], numpy.float64).reshape(-1)
        if stem[:3] in ("r06", "r08", "r10"):
            recorded[f"v0_{name}"] = numpy.asarray(node["v0"], numpy.float64).reshape(-1)
    if stem.startswith("r11"):
        recorded["beta"] = numpy.array([node["gain"] for node in found.nodes.values()])
    recorded |= {"acc": 0.0} if number else {"T": numpy.array(steps), "acc": numpy.zeros(2)}
    return recorded


def test_every_method_agrees_with_the_loops(folder):
    loaded = checker.Folder(folder, folder)
    stems = sorted(path.stem for path in folder.glob("*_*.npz") if path.stem[:3] != "ann")
    assert len(stems) == 19
    for stem in stems:
        case = checker.Case(loaded, stem)
        assert case.known, stem
        case.check(most=0)
        assert case.problems == [], (stem, case.problems)


@pytest.mark.parametrize("key", ["theta_sum", "logits_T9"])
def test_the_check_can_fail(folder, key):
    loaded = checker.Folder(folder, folder)
    case = checker.Case(loaded, "base_max")
    case.recorded[key] = case.recorded[key] * (1 + 1e-5)
    case.check(most=0)
    assert case.problems


def test_logits_of_a_program_in_float32_may_differ_by_single_spikes(folder):
    loaded = checker.Folder(folder, folder)
    stem = "r05_none_max_T4"
    for off, fine in ((0.0, True), (1.0, False)):
        case = checker.Case(loaded, stem)
        theta, weight = case.recorded["theta_hidden"].item(), loaded.load("ann_relu")["W4"]
        largest = numpy.sort(numpy.abs(weight))[:, -3:].sum(1).max()
        logits = case.recorded["logits"].astype(numpy.float32)
        logits[0, 0] += off * 2 * theta * largest / 4
        case.recorded["logits"] = logits
        case.check(most=0)
        assert (case.problems == []) == fine, case.problems
