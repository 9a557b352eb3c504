"""How fast LTS, SDT and TET fit random labels: on a static input, and on one that changes.

    python examples/imp_convergence.py [--seeds 3] [--steps 100] [--output runs/imp_convergence]

The network is 16-256-256-256-16, linear layers without bias with IF neurons (soft reset) between
them, T = 4. 1,024 inputs in [0, 1) with random labels of 16 classes are one batch; Adam, 1e-3. The
three losses start from the same weights. "Static" holds an input over time; "changing" draws a new
one at every step.

Prints two numbers for each run: the loss that was trained, and the cross-entropy of the prediction
that goes with it (mean output for SDT and TET, last output for LTS), which are on one scale. Saves
both over the training steps as JSON and as a plot. About a minute on two CPU cores.

Source: Shen et al., "Rethinking the Membrane Dynamics and Optimization Objectives of Spiking Neural
Networks", NeurIPS 2024.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from tqdm import tqdm

from sj_ext.loss import LTSLoss, SDTLoss, TETLoss

CLASSES, INPUTS, WIDTH = 16, 16, 256
LOSSES = {"LTS": LTSLoss(), "SDT": SDTLoss(), "TET": TETLoss()}


def network() -> nn.Module:
    sizes = [INPUTS, WIDTH, WIDTH, WIDTH, CLASSES]
    modules: list[nn.Module] = []
    for before, after in pairwise(sizes):
        modules += [layer.Linear(before, after, bias=False), neuron.IFNode(v_reset=None)]
    net = nn.Sequential(*modules[:-1])
    functional.set_step_mode(net, "m")
    return net


def train(net, criterion, x_seq, target, steps, bar):
    """Train on one batch; returns the trained loss and the prediction's, before every step."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    trained, predicted = [], []
    for step in range(steps + 1):
        functional.reset_net(net)
        y_seq = net(x_seq)
        loss = criterion(y_seq, target)
        trained.append(loss.item())
        predicted.append(F.cross_entropy(criterion.predict(y_seq.detach()), target).item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
    return {"trained": trained, "predicted": predicted}


def run(kind: str, seed: int, arguments: argparse.Namespace, bar: tqdm) -> dict:
    torch.manual_seed(seed)
    start = network()
    n, t = arguments.samples, arguments.num_steps
    if kind == "static":
        x_seq = torch.rand(n, INPUTS).expand(t, n, INPUTS)
    else:
        x_seq = torch.rand(t, n, INPUTS)
    target = torch.randint(CLASSES, (n,))
    curves = {}
    for name, criterion in LOSSES.items():
        bar.set_description(f"{kind}, seed {seed}, {name}")
        curves[name] = train(copy.deepcopy(start), criterion, x_seq, target, arguments.steps, bar)
    return curves


def plot(results: dict[str, list[dict]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for ax, (kind, runs) in zip(axes, results.items(), strict=True):
        for color, name in enumerate(LOSSES):
            for number, curves in enumerate(runs):
                for what, style in (("trained", "-"), ("predicted", ":")):
                    label = f"{name}, {what}" if number == 0 else None
                    ax.plot(curves[name][what], style, color=f"C{color}", label=label)
        ax.set_title(f"{kind} input")
        ax.set_xlabel("training step")
        ax.set_ylabel("cross-entropy")
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    parser.add_argument("--num-steps", type=int, default=4, help="time steps T")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--input", choices=["static", "changing", "both"], default="both")
    parser.add_argument("--short", action="store_true", help="one seed, 20 steps, 128 samples")
    parser.add_argument("--output", type=Path, default=Path("runs/imp_convergence"))
    arguments = parser.parse_args()
    if arguments.short:
        arguments.seeds, arguments.steps, arguments.samples = 1, 20, 128
    kinds = ["static", "changing"] if arguments.input == "both" else [arguments.input]

    begin = time.perf_counter()
    total = len(kinds) * arguments.seeds * len(LOSSES) * arguments.steps
    with tqdm(total=total, unit="step", disable=None) as bar:
        results = {
            kind: [run(kind, seed, arguments, bar) for seed in range(arguments.seeds)]
            for kind in kinds
        }
    seconds = time.perf_counter() - begin

    print(f"\nAt training step {arguments.steps}: trained loss / cross-entropy of the prediction")
    print(
        f"{'input':10}{'seed':>5}" + "".join(f"{name:>16}" for name in LOSSES) + "  fastest first"
    )
    for kind, runs in results.items():
        for seed, curves in enumerate(runs):
            last = {name: (c["trained"][-1], c["predicted"][-1]) for name, c in curves.items()}
            cells = "".join(f"{f'{a:.3f} / {b:.3f}':>16}" for a, b in last.values())
            order = sorted(last, key=lambda name: last[name][0])
            print(f"{kind:10}{seed:5}{cells}  {' < '.join(order)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        **{k: v for k, v in vars(arguments).items() if k != "output"},
        "curves": results,
    }
    (arguments.output / "curves.json").write_text(json.dumps(record))
    plot(results, arguments.output / "curves.png")
    print(f"{seconds:.0f} s; curves.json and curves.png are in {arguments.output}")


if __name__ == "__main__":
    main()
