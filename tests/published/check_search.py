#!/usr/bin/env python3
"""Hold the search package against recordings of the public programs.

    python tests/published/check_search.py FOLDER...

Run from the project's root. Takes every recording in the folders whose name begins with
``autosnn_``, ``branchless_``, ``snasnet_`` or ``autost_score``; a line a file, exit status 1 if one
differs.
"""

# ruff: noqa: E402

from __future__ import annotations

import ast
import pathlib
import sys

import numpy
import torch

sys.path[:0] = [".", "tests"]

from sj_ext import host
from sj_ext.search import cost, fittest, score, spike_aware
from sj_ext.search import space as spaces
from sj_ext.search.network import autosnn, autost, branchless, snasnet
from sj_ext.search.space.autosnn import CANDIDATES
from sj_ext.search.space.snasnet import genes_of

VALUE, GRADIENT = 1e-5, 2e-4


class Comparison:
    """What differs in one recording, relative to the largest value of what is compared."""

    def __init__(self) -> None:
        self.bad: list[str] = []
        self.worst = 0.0

    def value(self, what, got, want, limit=VALUE, scale=None) -> None:
        got = numpy.asarray(got.detach() if isinstance(got, torch.Tensor) else got, dtype=float)
        want = numpy.asarray(want, dtype=float)
        if got.shape != want.shape:
            self.bad.append(f"{what}: shape {got.shape} for {want.shape}")
            return
        size = max(abs(want).max(), 1e-6) if scale is None else scale
        error = float(abs(got - want).max() / size)
        self.worst = max(self.worst, error)
        if not error <= limit:
            self.bad.append(f"{what}: {error:.1e}")

    def gradients(self, what, found, wanted) -> None:
        """Each relative to its own size; one whose true value is 0 relative to the largest."""
        largest = max(float(abs(g).max()) for g in wanted.values())
        for name, want in wanted.items():
            got = found.get(name)
            got = torch.zeros(want.shape) if got is None else got
            size = float(abs(want).max())
            scale = size if size > 1e-5 * largest else largest
            self.value(f"{what} of {name}", got, want, GRADIENT, scale)


def under(recording, prefix: str) -> dict[str, numpy.ndarray]:
    return {
        key.removeprefix(prefix): numpy.array(recording[key])
        for key in recording.files
        if key.startswith(prefix)
    }


def tensors(arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


# ---- AutoSNN -------------------------------------------------------------------------------------


def autosnn_supernet(recording) -> Comparison:
    state, archs = tensors(under(recording, "param/")), recording["archs"]
    pooled = [bool((column < 0).all()) for column in archs.T]
    space = spaces.autosnn(slots=tuple(pooled))
    x, found = torch.from_numpy(recording["x"]), Comparison()
    for steps in range(1, 17):  # the recording does not say how many there were
        net = _autosnn(state, pooled, steps, x.shape[-1])
        outputs, spikes = _paths(net, space, archs, x)
        if numpy.allclose(outputs, recording["y"], atol=1e-4):
            break
    found.value("y", outputs, recording["y"])
    found.value("spikes", spikes, recording["spikes_per_image"])
    net.train()
    net.activate(space, _architecture(space, archs[0]))
    x.requires_grad_()
    y = net(x).sum(0)
    found.value("y_train", y, recording["y_train"])
    target = torch.nn.functional.one_hot(torch.tensor([0, 2]), y.shape[1]).float()
    if "mse_loss_targets_0_2" in recording.files and len(x) == 2 and y.shape[1] > 2:
        loss = torch.nn.functional.mse_loss(y / net.model.T, target)
        found.value("loss", loss, recording["mse_loss_targets_0_2"])
    (y * torch.from_numpy(recording["w"])).sum().backward()
    ours = {name: net.published.ours(name) for name in state}
    named = dict(net.model.named_parameters())
    grads = {n: named[o].grad for n, o in ours.items() if o in named} | {"x": x.grad}
    found.gradients("gradient", grads, under(recording, "grad/"))
    buffers = dict(net.model.named_buffers())
    for name, value in under(recording, "after/").items():
        found.value(f"buffer {name}", buffers[ours[name]], value)
    return found


def _autosnn(state, pooled, steps, side):
    stem = len(state["conv_stem.1.weight"])
    channels, strides = [], []
    for i, pool in enumerate(pooled):
        below = channels[-1] if channels else stem
        weight = state.get(f"layers.{i}.blocks.1.conv1.weight")
        channels.append(below if pool else len(weight))
        strided = f"layers.{i}.blocks.0.conv_1.weight" in state
        strides.append(2 if pool or strided else 1)
    sizes = autosnn.Sizes(
        channels=channels,
        strides=strides,
        stem=stem,
        image_size=side,
        T=steps,
        in_channels=state["conv_stem.0.weight"].shape[1],
        num_classes=len(state["fc.1.weight"]) // autosnn.BOOST,
    )
    net = autosnn.supernet(pooled, sizes)
    net.model.load_state_dict({net.published.ours(name): value for name, value in state.items()})
    return net


def _architecture(space, code):
    return space.architecture(*(CANDIDATES[i] for i in code if i >= 0))


def _paths(net, space, archs, x):
    net.eval()
    outputs, spikes = [], []
    for code in archs:
        net.activate(space, _architecture(space, code))
        with torch.no_grad():
            outputs.append(net(x).sum(0).numpy())
        host.functional.reset_net(net)
        spikes.append(cost.spikes(net, x, include_pooling=True))
    return numpy.array(outputs), numpy.array(spikes)


def autosnn_evolution(recording) -> Comparison:
    found, space = Comparison(), spaces.autosnn()
    accuracy, spikes = recording["accuracy"], recording["spikes"]
    exponent, reference = float(recording["lambda"]), float(recording["avg_num_spikes"])

    def fitness(architecture):
        i = space.index(architecture)
        return spike_aware(accuracy[i], spikes[i], reference, exponent)

    best = []
    for i, pool in enumerate(recording["pools"]):
        fresh = [_architecture(space, code) for code in pool]
        best = fittest([*best, *fresh], fitness, len(recording["topk_arch"][i]))
        wanted = [_architecture(space, code) for code in recording["topk_arch"][i]]
        if best != wanted:
            found.bad.append(f"the best after generation {i}")
        found.value("fitness", [fitness(a) for a in best], recording["topk_fitness"][i], 1e-12)
    return found


# ---- the branchless supernet ---------------------------------------------------------------------


def branchless_supernet(recording) -> Comparison:
    found, prefix = Comparison(), "single-path-search/"
    state = {
        name.removeprefix(prefix).removesuffix(":0"): value
        for name, value in tensors(under(recording, "param/")).items()
    }
    x = torch.from_numpy(recording["x_nhwc"]).permute(0, 3, 1, 2)
    for steps in range(1, 17):  # the recording does not say how many there were
        net = _branchless(state, steps)
        named = _branchless_names(net)
        with torch.no_grad():
            for name, value in state.items():
                named[name].copy_(_ours(value))
            logits = _counted(net.eval(), x)[0]
        if numpy.allclose(logits, recording["logits_eval"], atol=1e-4):
            break
    labels = torch.from_numpy(recording["labels"])
    for mode in ("eval", "train"):
        net.train(mode == "train")
        logits, operations, spikes = _counted(net, x)
        found.value(f"logits, {mode}", logits, recording[f"logits_{mode}"])
        found.value(f"spikes, {mode}", spikes, recording[f"num_spikes_batch_sum_{mode}"], 0)
        synops = recording[f"num_synops_batch_sum_{mode}"]
        found.value(f"operations, {mode}", operations, synops)
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        found.value(f"cross-entropy, {mode}", loss, recording[f"cross_entropy_{mode}"])
        penalty = cost.synops_penalty(operations, len(x))
        found.value(f"penalty, {mode}", penalty, recording[f"synops_term_{mode}"])
    weight = torch.from_numpy(recording["w"])
    for key, index in (("grad_logits_dot_w/", 0), ("grad_synops/", 1), ("grad_spikes/", 2)):
        net.zero_grad()
        results = _counted(net, x)
        (results[index] * weight if index == 0 else results[index]).sum().backward()
        wanted = {
            name.removeprefix(prefix).removesuffix(":0"): _ours(value).numpy()
            for name, value in tensors(under(recording, key)).items()
        }
        found.gradients(key.rstrip("/"), {n: t.grad for n, t in named.items()}, wanted)
    return found


def _branchless(state, steps):
    heads = sorted(
        (name for name in state if name.startswith("head_conv_kernel")),
        key=lambda name: int(name.rpartition("_")[2]) if name[-1].isdigit() else 0,
    )
    widths = [state[name].shape[3] for name in heads]
    # a stage begins where the width changes; equally many blocks in each
    starts = [1] + [i for i in range(2, len(widths)) if widths[i] != widths[i - 1]]
    blocks = (len(widths) - 1) // len(starts)
    return branchless.Branchless(
        len(state["snn_super_net/mnas_head/dense/bias"]),
        steps,
        stem=state["snn_super_net/mnas_stem/conv2d/kernel"].shape[3],
        first=widths[0],
        widths=[widths[i] for i in starts],
        blocks=blocks,
        head=state["snn_super_net/mnas_head/conv2d_1/kernel"].shape[3],
    )


def _branchless_names(net) -> dict[str, torch.Tensor]:
    named = {
        "thresh": net.threshold,
        "snn_super_net/mnas_stem/conv2d/kernel": net.stem.weight,
        "snn_super_net/mnas_head/conv2d_1/kernel": net.last.weight,
        "snn_super_net/mnas_head/dense/kernel": net.classifier.weight,
        "snn_super_net/mnas_head/dense/bias": net.classifier.bias,
        **_norm("mnas_stem/batch_normalization", net.stem_bn),
        **_norm("mnas_head/batch_normalization", net.last_bn),
    }
    for i, block in enumerate(net.blocks):
        behind = f"_{i}" if i else ""
        named[f"head_conv_kernel{behind}"] = block.head.weight
        named[f"tial_conv_kernel{behind}"] = block.tail.weight
        named |= _norm(f"mnas_blocks_{i}/batch_normalization", block.head_bn)
        named |= _norm(f"mnas_blocks_{i}/batch_normalization_1", block.tail_bn)
        for j, kernel in enumerate((block.head, block.tail)):
            number = 2 * (i - 1) + j
            behind = f"_{number}" if number else ""
            if i:
                named |= {f"t3x3{behind}": kernel.t3, f"t5x5{behind}": kernel.t5}
    return named


def _norm(prefix, norm) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}/gamma": norm.weight,
        f"{prefix}/beta": norm.bias,
        f"{prefix}/moving_mean": norm.running_mean,
        f"{prefix}/moving_variance": norm.running_var,
    }


def _ours(value: torch.Tensor) -> torch.Tensor:
    """Kernels with their outputs first."""
    return value.permute(3, 2, 0, 1) if value.dim() == 4 else value.T if value.dim() == 2 else value


def _counted(net, x):
    host.functional.reset_net(net)
    spikes = []
    handles = [
        module.register_forward_hook(lambda module, inputs, y: spikes.append(y.sum()))
        for module in net.modules()
        if isinstance(module, branchless.SharedThresholdNode)
    ]
    logits, operations = net.counted(x)
    for handle in handles:
        handle.remove()
    host.functional.reset_net(net)
    return logits.mean(0), operations, torch.stack(spikes).sum()


# ---- SNASNet -------------------------------------------------------------------------------------


def snasnet_model(recording) -> Comparison:
    found = Comparison()
    state = tensors(under(recording, "param/"))
    x = torch.from_numpy(recording["x"])
    classes = recording["y"].shape[1]
    net = _snasnet(recording["con_mat"], int(recording["T"]), x.shape[-1], state, classes)
    with torch.no_grad():
        found.value("y", net.eval()(x).mean(0), recording["y"])
    host.functional.reset_net(net)
    x.requires_grad_()
    y = net.train()(x).mean(0)
    found.value("y_train", y, recording["y_train"])
    (y * torch.from_numpy(recording["w"])).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()} | {"x": x.grad}
    found.gradients("gradient", grads, under(recording, "grad/"))
    buffers = dict(net.named_buffers())
    for name, value in under(recording, "after/").items():
        found.value(f"buffer {name}", buffers[name], value)
    return found


def snasnet_score(recording) -> Comparison:
    found, x = Comparison(), torch.from_numpy(recording["x"])
    scores = []
    for i, rows in enumerate(recording["con_mat"]):
        state = tensors(under(recording, f"param{i}/"))
        net = _snasnet(rows, int(recording["T"]), x.shape[-1], state, 1)
        for repeat in range(recording["score_per_repeat"].shape[1]):
            for cell in (net.cell1, net.cell2):  # all that the program resets between batches
                cell.reset()
            kernel = score.pattern_kernel(net, x, reset=False)
            key = f"K{i}_repeat{repeat}"
            if key in recording.files:
                found.value(key, kernel, recording[key])
            got = float(torch.linalg.slogdet(kernel)[1])
            found.value("score", got, recording["score_per_repeat"][i, repeat], 1e-4)
            scores.append(got)
    means = numpy.array(scores).reshape(len(recording["con_mat"]), -1).mean(1)
    if (recording["con_mat"][means.argmax()] != recording["best_con_mat"]).any():
        found.bad.append("the best matrix")
    return found


def _snasnet(rows, steps, side, state, classes):
    cell = "backward" if any(rows[i][j] for i in range(4) for j in range(i)) else "forward"
    space = spaces.snasnet(cell)
    genes = genes_of(rows, cell == "backward")
    hidden, features = state["classifier.1.weight"].shape
    channels = len(state["stem.1.weight"])
    last = round((features / (2 * channels)) ** 0.5)
    net = snasnet.SNASNet(
        spaces.Architecture(space.name, genes),
        classes,
        steps,
        channels=channels,
        image_size=side,
        pool=side // 2 // last,
        hidden=hidden,
        cluster=len(state["classifier.3.bias"]) // classes,
        dropout=0.0,
    )
    net.load_state_dict(state)
    return net


# ---- AutoST --------------------------------------------------------------------------------------


def autost_score(recording) -> Comparison:
    found = Comparison()
    for i, told in enumerate(recording["cand"]):
        _, ratios, heads, width = ast.literal_eval(str(told))
        candidate = autost.Candidate(tuple(ratios), tuple(heads), width)
        batch = int(recording["batch"][i])
        found.value("parameters", autost.parameters(candidate), recording["params"][i], 0)
        operations = autost.operations(candidate, batch=batch)
        found.value("operations", operations, recording["ops_per_image"][i], 1e-12)
        got = score.autost_score(candidate, batch=batch)
        found.value("score", got, recording["score_G"][i], 1e-6)
    return found


CHECKS = {
    "autosnn_supernet": autosnn_supernet,
    "autosnn_evolution": autosnn_evolution,
    "branchless_supernet": branchless_supernet,
    "snasnet_model": snasnet_model,
    "snasnet_score": snasnet_score,
    "autost_score": autost_score,
}


def check(path: pathlib.Path) -> Comparison | None:
    """What differs in a recording; None where it is of something else."""
    for beginning, function in CHECKS.items():
        if path.stem.startswith(beginning):
            return function(numpy.load(path))
    return None


def main() -> int:
    paths = [path for folder in sys.argv[1:] for path in sorted(pathlib.Path(folder).glob("*.npz"))]
    good = seen = 0
    for path in paths:
        found = check(path)
        if found is None:
            continue
        seen += 1
        good += not found.bad
        verdict = "differs" if found.bad else "ok"
        print(f"{verdict}  {path.stem}  worst {found.worst:.1e}  {'; '.join(found.bad[:4])}")
    print(f"{good} of {seen} recordings agree")
    return int(good != seen or not seen)


if __name__ == "__main__":
    sys.exit(main())
