"""Eleven ways from a trained network to spikes, and ours, beside the host's own converter.

On CIFAR-10 (``--data-dir``) with the networks of a folder that ``CONVERSION_NETWORKS`` names
(``arch.json`` and ``ann_*.npz``: folded weights, as ``tests/published/check_conversion.py`` reads
them), or, without it, on scikit-learn's digits with networks trained here.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.framework.record import Context, doubling_axis, legend_below, markdown
from benchmarks.lib.images import load
from torch import nn

from sj_ext import ann2snn, host
from sj_ext.ann2snn import ComposedRecipe, QuantizedClip, calibrate, presets, threshold

TITLE = "Conversion: accuracy by the number of steps"

STEPS = {"short": (2, 4, 8), "medium": (1, 2, 4, 8, 16), "full": (1, 2, 4, 8, 16, 32, 64, 128)}
Maximum, Percentile, MeanSquare = threshold.Maximum, threshold.Percentile, threshold.MeanSquare
LABELS = {"ours": "ours: per channel, half, counted, potentials"}


@dataclass(frozen=True)
class Method:
    """A row: the network it needs, and the recipe for images and a number of steps."""

    network: str
    recipe: Callable
    #: whether the recipe depends on the number of steps, so that each needs its own network
    anew: bool = False
    #: calibration images
    images: int = 256


def _composed(*parts, per="channel", shift=0.5, v_init=0.5, negative="counted"):
    def recipe(x, T):
        return ComposedRecipe(
            x,
            threshold=MeanSquare(T, per=per, shift=shift),
            v_init=v_init,
            negative=negative,
            calibrations=[part() for part in parts],
            T=T,
        )

    return recipe


Potential, Bias = calibrate.Potential, calibrate.Bias
METHODS: dict[str, Method] = {
    "ours: layer, half, potentials": Method(
        "relu", _composed(Potential, per="layer", negative=None), True
    ),
    "ours: channel, half": Method("relu", _composed(negative=None), True),
    "ours: channel, half, counted": Method("relu", _composed(), True),
    "ours: channel, half, potentials": Method("relu", _composed(Potential, negative=None), True),
    LABELS["ours"]: Method("relu", presets.low_latency, True),
    "1 Spike-Norm, hard": Method("relu", lambda x, T: presets.spike_norm(x, 64), images=64),
    "1/2 Spike-Norm, soft": Method(
        "relu", lambda x, T: presets.spike_norm(x, 64, reset="soft"), images=64
    ),
    "2 RMP, alpha 0.4": Method("relu", lambda x, T: presets.rmp(x, 64, alpha=0.4), images=64),
    "3 per channel 99.9%": Method("relu", lambda x, T: presets.spiking_yolo(x)),
    "3+6 per channel, half": Method("relu", lambda x, T: presets.spiking_yolo(x, v_init=0.5)),
    "3 LeakyReLU, signed": Method("leaky", lambda x, T: presets.spiking_yolo(x)),
    "3 LeakyReLU, unsigned": Method(
        "leaky", lambda x, T: presets.spiking_yolo(x, negative="ignore")
    ),
    "4 maximum and shift": Method("relu", presets.optimal_shift, True),
    "4 TReLU1 and shift": Method("trelu1", presets.optimal_shift, True),
    "4 TReLU2 and shift": Method("trelu2", presets.optimal_shift, True),
    "5 mean square and shift": Method(
        "relu", lambda x, T: presets.calibration_light(x, T, calibrations=[]), True, 64
    ),
    "5 light": Method("relu", presets.calibration_light, True, 64),
    "5 advanced (potentials)": Method("relu", presets.calibration_advanced, True, 64),
    "6 99.9%, half": Method("relu", lambda x, T: presets.optimal_potential(x)),
    "7 CQ, 16 levels": Method("cq16", lambda x, T: presets.cq()),
    "8 Fast-SNN, 3 bits, signed": Method("fast3", lambda x, T: presets.fast_snn()),
    "8 Fast-SNN, 3 bits, unsigned": Method("fast3", lambda x, T: presets.fast_snn(signed=False)),
    "10 QCFS, 8 levels": Method("qcfs8", lambda x, T: presets.qcfs()),
    "11 99.9%, half, gain": Method(
        "relu", lambda x, T: presets.residual_compensation(x), images=128
    ),
}
#: the host's own converter; on the other generation too, where ``OTHER_HOST`` names its folder
HOSTS = {"host: max": "max", "host: 99.9%": "99.9%"}
OTHER = {f"other {name}": mode for name, mode in HOSTS.items()}
SHORT = ["host: max", "6 99.9%, half", "5 light", "10 QCFS, 8 levels", LABELS["ours"]]


def cells(size: str) -> list[dict]:
    other = OTHER if "OTHER_HOST" in os.environ else {}
    names = SHORT if size == "short" else [*HOSTS, *other, *METHODS]
    return [{"method": name} for name in names]


def measure(cell: dict, context: Context) -> dict:
    warnings.simplefilter("ignore")
    name, steps = cell["method"], STEPS[context.size]
    if name in OTHER:
        return _on_the_other_host(name.removeprefix("other "), context)
    network = "relu" if name in HOSTS else METHODS[name].network
    source = _source(context, network)
    found: dict[int, float] = {}
    if name in HOSTS:
        snn = _by_host(source.net, source.calibration, HOSTS[name])
        found = ann2snn.evaluate(snn, source.test, steps)
    else:
        method = METHODS[name]
        x = source.calibration[: method.images]
        for each in [(t,) for t in steps] if method.anew else [steps]:
            snn = ann2snn.convert(source.net, method.recipe(x, each[-1]))
            found |= ann2snn.evaluate(snn, source.test, each)
    x, y = source.test
    with torch.no_grad():
        ann = float((source.net(x).argmax(1) == y).double().mean())
    return {
        "host": host.VERSION,
        "ann": ann,
        "accuracy": {str(t): value for t, value in found.items()},
    }


def table(rows: list[dict]) -> str:
    steps = sorted({int(t) for row in rows for t in row["figures"]["accuracy"]})

    def line(row):
        figures = row["figures"]
        each = [figures["accuracy"].get(str(t)) for t in steps]
        name = row["cell"]["method"].replace("other host", "host")
        if name in HOSTS:
            name = name.replace("host", f"SpikingJelly {figures['host']}")
        return [name, *(_percent(v) for v in (figures["ann"], *each))]

    header = ["method", "network", *(f"T={t}" for t in steps)]
    return "Test accuracy in percent:\n\n" + markdown(header, [line(row) for row in rows])


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    shown = {*SHORT, "host: 99.9%", "8 Fast-SNN, 3 bits, signed", "5 advanced (potentials)"}
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["cell"]["method"] in shown:
            accuracy = row["figures"]["accuracy"]
            ours = row["cell"]["method"].startswith("ours")
            axes.plot(
                [int(t) for t in accuracy],
                [100 * value for value in accuracy.values()],
                "-o" if ours else ":o",
                label=row["cell"]["method"],
            )
    doubling_axis(axes, [int(t) for row in rows for t in row["figures"]["accuracy"]])
    axes.set(xlabel="steps", ylabel="test accuracy, %")
    legend_below(figure, axes)
    return figure


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


@dataclass(frozen=True)
class Source:
    """A trained network, images to calibrate on, and images with labels to test on."""

    net: nn.Module
    calibration: torch.Tensor
    test: tuple[torch.Tensor, torch.Tensor]


@functools.cache
def _source(context: Context, network: str) -> Source:
    folder = os.environ.get("CONVERSION_NETWORKS")
    if context.data_dir is not None and folder:
        return _recorded(Path(folder), context.data_dir, network)
    return _trained(context, network)


def _recorded(path: Path, data: Path, network: str) -> Source:
    sys.path[:0] = [str(Path(__file__).resolve().parents[3] / "tests" / "published")]
    from check_conversion import Folder

    folder = Folder(path, data)
    bounds = {"qcfs8": "r10_qcfs8", "fast3": "r08_fast3_signed"}
    recorded = folder.load(bounds[network]) if network in bounds else {}
    net = folder.network(
        f"ann_{network}", lambda name: _activation(network, recorded.get(f"theta_{name}"))
    )
    return Source(net.float(), folder.calibration, (folder.test, folder.labels))


def _activation(network: str, bound=None) -> nn.Module:
    bound = 4.0 if bound is None else float(bound.item())
    return {
        "relu": nn.ReLU,
        "leaky": lambda: nn.LeakyReLU(0.1),
        "trelu1": QuantizedClip.relu1,
        "trelu2": QuantizedClip.relu2,
        "cq16": lambda: QuantizedClip.cq(16),
        "fast3": lambda: QuantizedClip.bits(3, bound),
        "qcfs8": lambda: QuantizedClip.qcfs(8, bound),
    }[network]()


def _trained(context: Context, network: str) -> Source:
    train, test = load(context, 8 if context.data_dir is None else 32, 4000, 500)
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return [convolution, nn.BatchNorm2d(outputs), _activation(network)]

    net = nn.Sequential(
        *block(train.x.shape[1], 12),
        nn.AvgPool2d(2),
        *block(12, 24),
        *block(24, 24),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    epochs = 8
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        order = torch.randperm(len(train.x))
        for rows in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
        schedule.step()
    return Source(net.eval(), train.x[:256], (test.x, test.y))


def _by_host(net: nn.Module, calibration: torch.Tensor, mode: str) -> nn.Module:
    """The host's own converter, on all calibration images at once."""
    batches = [(calibration, torch.zeros(len(calibration)))]
    if host.GENERATION == 1:
        return host.ann2snn.Converter(batches, mode=mode)(net)
    recipe = host.ann2snn.RateCodingRecipe(batches, mode=mode)
    return host.ann2snn.Converter(recipe).convert(net)


def _on_the_other_host(name: str, context: Context) -> dict:
    """The figures of a cell by a process that finds the other generation of the host first."""
    root = Path(__file__).resolve().parents[3]
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.tables import conversion as c;"
        "from benchmarks.framework.record import Context;"
        f"context = Context({context.size!r}, {context.device!r}, Path({str(context.data_dir)!r}));"
        f"figures = c.measure({{'method': {name!r}}}, context);"
        "print(json.dumps(figures | {'host': c.host.VERSION}))"
    )
    path = [os.environ["OTHER_HOST"], str(root), str(root / "examples")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return json.loads(done.stdout.decode().strip().splitlines()[-1])
