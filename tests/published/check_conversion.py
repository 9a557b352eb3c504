#!/usr/bin/env python3
"""Hold the conversion against recordings of it: python check_conversion.py FOLDER [FOLDER ...]

Run from the project's root, with its python, on either host. A folder has ``arch.json``,
``ann_*.npz`` (folded weights of a network), ``ann_relu_logits.npz`` (indices of images, labels) and
recordings whose names say the method; the images are those of ``--data`` (CIFAR-10 as
``train.npz`` and ``test.npz`` of JPEG files).

Compared: thresholds, initial potentials and gains to 1e-6; logits at the steps that a file has to
1e-6 where they are float64; accuracies within 0.6 points. Logits of a program in float32 are met
but for single spikes: a sum in another order moves a potential by its rounding, and a neuron that
stands so near to its threshold fires a step sooner or later. A spike of neuron j of the last
spiking layer is worth theta |W_ij| / T in logit i, so the limit is that of SPIKES such neurons,
those with the largest weights. A line a file; exit status 1 if one differs. ``--steps 32`` leaves
out accuracies beyond that many steps.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import pathlib
import re
import sys
import time
import warnings

import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path[:0] = ["."]
from sj_ext import ann2snn, host  # noqa: E402
from sj_ext.ann2snn import calibrate, presets, threshold  # noqa: E402
from sj_ext.ann2snn.observe import sites  # noqa: E402

MEAN = np.array((0.4914, 0.4822, 0.4465), np.float32)
STD = np.array((0.2470, 0.2435, 0.2616), np.float32)
EXACT, POINTS, SPIKES = 1e-6, 0.6, 3


class Network(nn.Module):
    """A network as ``arch.json`` describes it."""

    def __init__(self, arch, state, activation):
        super().__init__()
        self.layers = arch["layers"]
        self.parts, self.acts = nn.ModuleDict(), nn.ModuleDict()
        for spec in self.layers:
            self.parts[spec["name"]] = self._part(spec, state)
            if spec.get("then") == "activation":
                self.acts[spec["name"]] = activation(spec["name"])

    @staticmethod
    def _part(spec, state):
        op = spec["op"]
        if pooling := re.fullmatch(r"(avg|max)_?pool(\d+)", op):
            kind = nn.AvgPool2d if pooling[1] == "avg" else nn.MaxPool2d
            return kind(int(pooling[2]), spec.get("stride"))
        if op in ("globalavgpool", "global_avgpool", "gap", "adaptiveavgpool", "avgpool_global"):
            return nn.AdaptiveAvgPool2d(1)
        if op in ("identity", "add"):
            return nn.Identity()
        weight = torch.tensor(state[f"W{spec['weights']}"])
        bias = torch.tensor(state[f"b{spec['weights']}"])
        if convolution := re.fullmatch(r"conv(\d+)(x\d+)?", op):
            kernel = int(convolution[1])
            groups = spec.get("groups", 1)
            part = nn.Conv2d(
                weight.shape[1] * groups,
                weight.shape[0],
                kernel,
                spec.get("stride", 1),
                spec.get("padding", 0),
                groups=groups,
            )
        elif op == "linear":
            part = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0]))
        else:
            raise ValueError(f"arch.json: unknown op {op!r} of layer {spec['name']!r}")
        layer = part[1] if op == "linear" else part
        layer.weight.data, layer.bias.data = weight, bias
        return part

    def forward(self, x):
        values = {"input": x}
        for spec in self.layers:
            y = self.parts[spec["name"]](values[spec["from"]])
            if spec.get("add") is not None:
                y = y + values[spec["add"]]
            if spec["name"] in self.acts:
                y = self.acts[spec["name"]](y)
            values[spec["name"]] = y
        return y


class Folder:
    """Networks, images and recordings of a folder."""

    def __init__(self, path, data):
        self.path = pathlib.Path(path)
        self.arch = json.loads((self.path / "arch.json").read_text())
        index = dict(np.load(self.path / "ann_relu_logits.npz"))
        self.labels = torch.tensor(index["labels"])
        test, train = np.load(data / "test.npz"), np.load(data / "train.npz")
        self.test = _images(test, index["test_index"])
        self.calibration = _images(train, index["cal_index"])
        rows = index["cal_index"]
        self.calibration_labels = torch.tensor(train["label"][rows].astype(np.int64))

    def load(self, stem):
        return dict(np.load(self.path / f"{stem}.npz", allow_pickle=False))

    def names(self):
        return [spec["name"] for spec in self.arch["layers"] if spec.get("then") == "activation"]

    def network(self, stem, activation, dtype=torch.float64, state=None):
        state = self.load(stem) if state is None else state
        return Network(self.arch, state, activation).to(dtype).eval()


def _images(data, index):
    def image(i):
        raw = data["jpeg"][data["offset"][i] : data["offset"][i + 1]].tobytes()
        pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), np.float32)
        return ((pixels / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)

    data = {name: data[name] for name in ("jpeg", "offset")}
    return torch.tensor(np.stack([image(i) for i in index]))


def _relu(name):
    return nn.ReLU()


def _percent(digits):
    """``999`` is 99.9, ``9999`` is 99.99, and ``100`` is all."""
    return 100.0 if digits == "100" else float(digits[:2] + "." + (digits[2:] or "0"))


def _clip(recorded, make):
    """Activations whose bounds are the recorded thresholds."""

    def activation(name):
        made = make()
        made.double().bound = float(recorded[f"theta_{name}"].item())
        return made

    return activation


def method(stem, recorded, folder):
    """Network, activation and recipe(images, T) of a recording; ``None`` for other forms."""
    cal = slice(0, len(folder.calibration))
    few, some = slice(0, 64), slice(0, 128)
    rule, Clip, Recipe = threshold, ann2snn.QuantizedClip, ann2snn.ComposedRecipe
    rows = [
        (r"base_max", "ann_relu", _relu, cal,
         lambda m, x, T: Recipe(x, threshold=rule.Maximum(), v_init=0.0)),
        (r"base_p(\d+)", "ann_relu", _relu, cal,
         lambda m, x, T: Recipe(x, threshold=rule.Percentile(_percent(m[1])), v_init=0.0)),
        (r"r01_spikenorm_(hard|soft)", "ann_relu", _relu, few,
         lambda m, x, T: presets.spike_norm(x, 64, reset=m[1])),
        (r"r02_rmp_alpha([\d.]+)", "ann_relu", _relu, few,
         lambda m, x, T: presets.rmp(x, 64, alpha=float(m[1]))),
        (r"r03_channel_p(\d+)(_v0half)?", "ann_relu", _relu, cal,
         lambda m, x, T: presets.spiking_yolo(x, _percent(m[1]), v_init=0.5 if m[2] else 0.0)),
        (r"r03_leaky_(channel|layer)_(ibt|noneg)", "ann_leaky", lambda n: nn.LeakyReLU(0.1), cal,
         lambda m, x, T: presets.spiking_yolo(
             x, threshold=rule.Percentile(99.9, m[1]),
             negative="leaky" if m[2] == "ibt" else "ignore")),
        (r"r04_shift_max", "ann_relu", _relu, cal,
         lambda m, x, T: presets.optimal_shift(x, T)),
        (r"r04_trelu([\d.]+)", "ann_trelu{1}", lambda n: Clip(float(stem[9:]), learn_bound=False),
         cal, lambda m, x, T: presets.optimal_shift(x, T)),
        (r"r05_none_max_T\d+", "ann_relu", _relu, few,
         lambda m, x, T: presets.optimal_shift(x, T)),
        (r"r05_none_mse_T\d+", "ann_relu", _relu, few,
         lambda m, x, T: presets.calibration_light(x, T, calibrations=[])),
        (r"r05_light_T\d+", "ann_relu", _relu, few,
         lambda m, x, T: presets.calibration_light(x, T)),
        (r"r05_potential_T\d+", "ann_relu", _relu, few,
         lambda m, x, T: presets.calibration_advanced(x, T)),
        (r"r06_opi_max", "ann_relu", _relu, cal,
         lambda m, x, T: presets.optimal_potential(x, threshold=rule.Maximum())),
        (r"r06_opi_p(\d+)", "ann_relu", _relu, cal,
         lambda m, x, T: presets.optimal_potential(x, _percent(m[1]))),
        (r"r07_cq(\d+)", "ann_cq{1}", lambda n: Clip.cq(int(stem[6:])), cal,
         lambda m, x, T: presets.cq()),
        (r"r08_fast(\d+)_(signed|unsigned)", "ann_fast{1}",
         _clip(recorded, lambda: Clip.bits(int(stem[8]))), cal,
         lambda m, x, T: presets.fast_snn(bits=int(m[1]), signed=m[2] == "signed")),
        (r"r10_qcfs(\d+)", "ann_qcfs{1}", _clip(recorded, lambda: Clip.qcfs(int(stem[8:]))), cal,
         lambda m, x, T: presets.qcfs()),
        (r"r11_hu_v0(half|zero)_beta", "ann_relu", _relu, cal,
         lambda m, x, T: presets.residual_compensation(
             x, calibrations=[], v_init=0.5 if m[1] == "half" else 0.0)),
    ]  # fmt: skip
    for pattern, network, activation, images, recipe in rows:
        if match := re.fullmatch(pattern, stem):
            name = network.replace("{1}", match[1]) if "{1}" in network else network
            extra = calibrate.RateGain(32) if stem.startswith("r11") else None
            return name, activation, images, lambda x, T, m=match, r=recipe: r(m, x, T), extra, some
    return None


class Replay:
    """A recording that has trained weights: they are put into a network of this package's parts."""

    def __init__(self, folder, stem):
        self.folder, self.recorded = folder, folder.load(stem)
        self.tandem = stem.startswith("r09")
        self.steps = int(stem.rsplit("_T", 1)[1])
        self.problems, self.figures = [], []

    def check(self, most):
        run = self.tandem_logits if self.tandem else self.calibrated_logits
        found = run(self.folder.test[:8].double()).numpy()
        off = np.abs(found - self.recorded["logits"]).max()
        self.figures.append(f"logits T={self.steps} {off:.1e} (recorded in float32)")
        if not off < 1e-4:
            self.problems.append(f"logits differ by {off:.2g}")
        if "acc" in self.recorded:
            output = torch.cat([run(x) for x in self.folder.test.double().split(100)])
            accuracy = 100 * float((output.argmax(1) == self.folder.labels).double().mean())
            off = abs(accuracy - float(self.recorded["acc"]))
            self.figures.append(f"accuracy {off:.1f} points")
            if not off <= POINTS + 1e-9:
                self.problems.append(f"accuracy is {accuracy:.1f}, off by {off:.1f}")

    def calibrated_logits(self, x):
        """Calibrated weights, thresholds and initial potentials, with the half-step current."""
        state, names = self.folder.load("ann_relu"), self.folder.names()
        specs = {spec["name"]: spec for spec in self.folder.arch["layers"]}
        for name in names:
            number = specs[name]["weights"]
            state[f"W{number}"] = self.recorded[f"W_{name}"].reshape(state[f"W{number}"].shape)
        net = self.folder.network("ann_relu", _relu, state=state)
        recipe = ann2snn.ComposedRecipe(
            threshold=threshold.Fixed(
                {f"acts.{n}": torch.tensor(self.recorded[f"theta_{n}"]) for n in names}
            ),
            v_init=0.0,
            shift_T=self.steps,
            T=self.steps,
        )
        snn = ann2snn.convert(net, recipe)
        for name, site in sites(snn).items():
            v0 = torch.tensor(self.recorded[f"v0_{name.removeprefix('acts.')}"]).double()[0]
            v0 = v0.flatten() if v0.shape[1:].numel() == 1 else v0
            site.if_node.v_init = v0 / site.threshold
        return Case.run(snn, x, (self.steps,))[self.steps]

    def tandem_logits(self, x):
        """Counts handed on as they are, the image at the first step, norms without eps."""
        state = {}
        last = max(int(k[1:]) for k in self.recorded if re.fullmatch(r"W\d+", k))
        for k in range(last):
            gamma, beta, mean, var = (torch.tensor(v).double() for v in self.recorded[f"bn{k}"])
            weight, bias = (torch.tensor(self.recorded[f"{w}{k}"]).double() for w in "Wb")
            factor = gamma / var.sqrt()
            state[f"W{k}"] = (weight * factor.view(-1, *[1] * (weight.dim() - 1))).numpy()
            state[f"b{k}"] = (((bias - mean) * factor + beta) / self.steps).numpy()
        for w in "Wb":
            state[f"{w}{last}"] = self.recorded[f"{w}{last}"].astype(np.float64)
        state[f"b{last}"] = state[f"b{last}"] / self.steps
        thresholds = dict(zip(self.folder.names(), self.recorded["vth"].tolist(), strict=True))
        net = self.folder.network(
            "", lambda name: ann2snn.ConversionIFNode(thresholds[name]), state=state
        )
        with torch.no_grad():
            outputs = [net(x if t == 0 else torch.zeros_like(x)) for t in range(self.steps)]
        host.functional.reset_net(net)
        return torch.stack(outputs).sum(0)


class Case:
    """One recording."""

    def __init__(self, folder, stem):
        self.folder, self.stem = folder, stem
        self.recorded = folder.load(stem)
        found = method(stem, self.recorded, folder)
        self.known = found is not None
        if self.known:
            self.network, self.activation, self.images, self.recipe, self.extra, self.some = found
        number = re.search(r"_T(\d+)$", stem)
        self.only = int(number[1]) if number else None
        self.problems, self.figures = [], []

    def converted(self, T, dtype):
        net = self.folder.network(self.network, self.activation, dtype)
        images = self.folder.calibration.to(dtype)
        snn = ann2snn.convert(net, self.recipe(images[self.images], T))
        if self.stem.startswith("r08"):  # the program's guard is absolute
            for site in sites(snn).values():
                if site.if_node.negative is not None:
                    eps = 1e-3 / float(site.threshold)
                    object.__setattr__(site.if_node, "_negative", ("counted", eps))
        if self.extra is not None:
            ann2snn.refine(snn, [self.extra], ann=net, calibration=images[self.some])
        return snn

    def check(self, most):
        anew = self.stem.startswith("r04")
        exact = [int(k[8:]) for k in self.recorded if k.startswith("logits_T")]
        snn = None
        keys = [f"logits_T{T}" for T in exact] or ["logits"]
        double = all(self.recorded[key].dtype == np.float64 for key in keys)
        dtype = torch.float64 if double else torch.float32
        for T in exact or [self.only]:
            if snn is None or anew:
                snn = self.converted(T, dtype)
                self.values(snn)
            mean = self.run(snn, self.folder.test[:8].to(dtype), (T,))[T]
            key = f"logits_T{T}" if exact else "logits"
            off = np.abs(mean.numpy() - self.recorded[key]).max()
            limit = EXACT if double else EXACT + self.single_spikes(snn, T)
            self.figures.append(f"logits T={T} {off:.1e}" + ("" if double else f" of {limit:.1e}"))
            if not off < limit:
                self.problems.append(
                    f"logits at T={T} differ by {off:.2g}, the limit is {limit:.2g}"
                )
        self.accuracy(anew, most, None if double else snn)

    @staticmethod
    def single_spikes(snn, T):
        """What SPIKES neurons of the last spiking layer change in a logit by one spike each."""
        last = [m for m in snn.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        weights = last.weight.detach().flatten(1).abs()
        theta = float(list(sites(snn).values())[-1].threshold.max())
        return theta / T * float(weights.topk(min(SPIKES, weights.shape[1])).values.sum(1).max())

    def values(self, snn):
        layers = sites(snn)
        first = not any(figure.startswith("theta") for figure in self.figures)
        worst = 0.0
        for name, site in zip(self.folder.names(), layers.values(), strict=True):
            for key, found in (("theta", site.threshold), ("v0", self._v0(site))):
                wanted = self.recorded.get(f"{key}_{name}")
                if wanted is None or wanted.dtype != np.float64:
                    continue
                found = found.numpy().ravel()
                off = np.abs(found / wanted.ravel() - 1).max()
                worst = max(worst, off)
                if not off < EXACT:
                    self.problems.append(f"{key} of {name} differs by a share of {off:.2g}")
        if "beta" in self.recorded:
            gains = np.array([float(site.gain.max()) for site in layers.values()])
            off = np.abs(gains / self.recorded["beta"] - 1).max()
            worst = max(worst, off)
            if not off < EXACT:
                self.problems.append(f"gains differ by a share of {off:.2g}")
        if first:
            self.figures.insert(0, f"theta, v0, gain {worst:.1e}")

    @staticmethod
    def _v0(site):
        return site.if_node.v_init * site.threshold

    def accuracy(self, anew, most, snn):
        wanted = dict(zip(
            np.atleast_1d(self.recorded.get("T", self.only)).tolist(),
            np.atleast_1d(self.recorded["acc"]).tolist(), strict=True,
        ))  # fmt: skip
        wanted = {T: accuracy for T, accuracy in wanted.items() if most >= T}
        found = {}
        x, y = self.folder.test, self.folder.labels
        for steps in [(T,) for T in wanted] if anew else [tuple(wanted)]:
            if steps:
                snn = self.converted(steps[-1], torch.float32) if snn is None or anew else snn
                found |= ann2snn.evaluate(snn, (x, y), steps)
        off = max((abs(100 * found[T] - wanted[T]) for T in found), default=0.0)
        self.figures.append(f"accuracy {off:.1f} points")
        for T in found:
            if not abs(100 * found[T] - wanted[T]) <= POINTS + 1e-9:
                self.problems.append(
                    f"accuracy at T={T} is {100 * found[T]:.1f}, recorded {wanted[T]:.1f}"
                )

    @staticmethod
    def run(snn, x, steps):
        means, total = {}, 0.0
        host.functional.reset_net(snn)
        with torch.no_grad():
            for t in range(1, max(steps) + 1):
                total = total + snn(x)
                if t in steps:
                    means[t] = total / t
        host.functional.reset_net(snn)
        return means


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, help="default: FOLDER/../../data/cifar10")
    parser.add_argument("--steps", type=int, default=10**9, help="no accuracies beyond")
    parser.add_argument("--only", default="*", help="pattern of names")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"SpikingJelly {host.VERSION}, torch {torch.__version__}")
    failed = 0
    for path in options.folders:
        folder = Folder(path, options.data or path / "../../data/cifar10")
        for file in sorted(path.glob("*.npz")):
            if file.stem.startswith("ann_") or not fnmatch.fnmatch(file.stem, options.only):
                continue
            start = time.perf_counter()
            replay = re.match(r"r09_ptl|r05_weights", file.stem)
            case = (Replay if replay else Case)(folder, file.stem)
            if not replay and not case.known:
                case.problems.append("no method of this name is known")
            else:
                case.check(options.steps)
            failed += bool(case.problems)
            told = "; ".join(case.problems or case.figures)
            seconds = time.perf_counter() - start
            print(f"{'FAIL' if case.problems else 'ok  '} {file.stem}: {told} ({seconds:.0f} s)")
            sys.stdout.flush()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
