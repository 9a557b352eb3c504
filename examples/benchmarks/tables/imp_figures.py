"""What initial potentials and the losses do, in three small experiments.

- Firing patterns: one IF neuron (threshold 1, soft reset) under a constant current, from nine
  initial potentials.
- Pattern mapping: all 16 binary inputs of T = 4, scaled by a weight in [0, 1], through that neuron;
  how many of the 16 x 16 (output, input) pairs occur. Counted on a grid of weights, and exactly,
  over all real weights (and potentials): between two places where a potential can meet the
  threshold nothing changes, so those places and one point between each two of them are enough.
- Convergence: a 16-256-256-256-16 network (linear layers without bias, IF neurons with soft reset
  between them) fits random labels of 16 classes to inputs in [0, 1), one batch, Adam 1e-3. SDT, TET
  and LTS start from the same weights. "Static" holds an input over time, "changing" draws a new one
  at every step. Two figures for each run: the loss that was trained, and the cross-entropy of the
  prediction that goes with it (mean output for SDT and TET, last output for LTS), which are on one
  scale.

Source: Shen et al., "Rethinking the Membrane Dynamics and Optimization Objectives of Spiking Neural
Networks", NeurIPS 2024.
"""

from __future__ import annotations

import copy
from fractions import Fraction
from itertools import pairwise, product

import torch
from benchmarks.framework.record import legend_below, markdown
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.functional import cross_entropy

from sj_ext.analysis import (
    firing_patterns,
    pattern_mapping,
    plot_firing_patterns,
    plot_pattern_mapping,
)
from sj_ext.loss import LTSLoss, SDTLoss, TETLoss

TITLE = "Figures of initial potentials: firing patterns, pattern mapping, convergence"
IMAGES = False

CURRENT = 0.25
#: name: initial potentials and weights of the grid, and what the potentials are for the exact count
MAPPINGS = {
    "0": ([0.0], torch.linspace(0, 1, 17), (0, 0)),
    "0.25": ([0.25], torch.linspace(0, 1, 17), (Fraction(1, 4), Fraction(1, 4))),
    "in [-1, 1]": (torch.linspace(-1, 1, 9), torch.linspace(0, 1, 9), (-1, 1)),
}
CLASSES, INPUTS, WIDTH = 16, 16, 256
LOSSES = {"LTS": LTSLoss(), "SDT": SDTLoss(), "TET": TETLoss()}


def cells(size: str) -> list[dict]:
    rows: list[dict] = [{"part": "patterns", "current": CURRENT}]
    rows += [{"part": "mapping", "v_init": name} for name in MAPPINGS]
    fits = {"T": 4, "samples": 1024, "steps": 100}, range(3)
    if size == "short":
        fits = {"T": 4, "samples": 128, "steps": 20}, range(1)
    both = product(("static", "changing"), fits[1])
    rows += [{"part": "convergence", "input": i, "seed": s, **fits[0]} for i, s in both]
    if size != "short":
        # longer in time and training, where the paper finds TET ahead
        rows += [
            {
                "part": "convergence",
                "input": "changing",
                "seed": s,
                "T": 16,
                "samples": 1024,
                **steps,
            }
            for steps in ({"steps": 200}, {"steps": 600})
            for s in fits[1]
        ]
    return rows


def measure(cell: dict, context) -> dict:
    if cell["part"] == "patterns":
        potentials = torch.linspace(-1, 1, 9)
        trains = firing_patterns(cell["current"], potentials, num_steps=8).T.int().tolist()
        return {"v_init": potentials.tolist(), "spikes": ["".join(map(str, t)) for t in trains]}
    if cell["part"] == "mapping":
        v_init, weights, interval = MAPPINGS[cell["v_init"]]
        reachable = pattern_mapping(v_init, weights)
        return {"weights": len(weights), "grid": reachable.int().tolist(), "exact": exact(interval)}
    return convergence(cell, context.device)


# Pattern mapping over all real weights and potentials


def exact(interval: tuple[Fraction | int, Fraction | int], num_steps: int = 4) -> int:
    """Pairs of input and output that occur for weights in [0, 1] and V[0] in the interval.

    The neuron fires where V[0] + c w - k >= 1, with c inputs and k spikes so far: the lines
    V[0] = n - c w decide everything.
    """
    low, high = map(Fraction, interval)
    whole = range(-1, num_steps + 2)
    counts = range(num_steps + 1)
    weights = {Fraction(0), Fraction(1)}
    for c, other in product(counts, repeat=2):
        if c > other:
            # where two lines cross, and where one meets an end of the interval
            weights |= {Fraction(n, c - other) for n in range(-num_steps, num_steps + 1)}
    weights |= {(n - end) / c for c in counts[1:] for n in whole for end in (low, high)}
    pairs = set()
    for weight in _with_midpoints(weights, Fraction(0), Fraction(1)):
        lines = {n - c * weight for c in counts for n in whole}
        for v_init in _with_midpoints(lines | {low, high}, low, high):
            for inputs in product((0, 1), repeat=num_steps):
                pairs.add((inputs, _fire(v_init, weight, inputs)))
    return len(pairs)


def _with_midpoints(values: set[Fraction], low: Fraction, high: Fraction) -> list[Fraction]:
    inside = sorted(v for v in values if low <= v <= high)
    return inside + [(a + b) / 2 for a, b in pairwise(inside)]


def _fire(v: Fraction, weight: Fraction, inputs: tuple[int, ...]) -> tuple[int, ...]:
    spikes = []
    for x in inputs:
        v += weight * x
        spikes.append(int(v >= 1))
        v -= spikes[-1]
    return tuple(spikes)


# Convergence


def network() -> nn.Module:
    sizes = [INPUTS, WIDTH, WIDTH, WIDTH, CLASSES]
    modules: list[nn.Module] = []
    for before, after in pairwise(sizes):
        modules += [layer.Linear(before, after, bias=False), neuron.IFNode(v_reset=None)]
    net = nn.Sequential(*modules[:-1])
    functional.set_step_mode(net, "m")
    return net


def convergence(cell: dict, device: str) -> dict:
    torch.manual_seed(cell["seed"])
    start = network().to(device)
    n, num_steps = cell["samples"], cell["T"]
    if cell["input"] == "static":
        x_seq = torch.rand(n, INPUTS).expand(num_steps, n, INPUTS).to(device)
    else:
        x_seq = torch.rand(num_steps, n, INPUTS).to(device)
    target = torch.randint(CLASSES, (n,)).to(device)
    return {
        name: fit(copy.deepcopy(start), criterion, x_seq, target, cell["steps"])
        for name, criterion in LOSSES.items()
    }


def fit(net: nn.Module, criterion, x_seq, target, steps: int) -> dict[str, list[float]]:
    """Train on one batch; the trained loss and the prediction's, before every tenth step."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    curves: dict[str, list[float]] = {"step": [], "trained": [], "predicted": []}
    for step in range(steps + 1):
        functional.reset_net(net)
        y_seq = net(x_seq)
        loss = criterion(y_seq, target)
        if step % 10 == 0 or step == steps:
            predicted = cross_entropy(criterion.predict(y_seq.detach()), target)
            curves["step"].append(step)
            curves["trained"].append(round(loss.item(), 4))
            curves["predicted"].append(round(predicted.item(), 4))
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return curves


# Tables and plots


def _of(rows: list[dict], part: str) -> list[dict]:
    return [row for row in rows if row["cell"]["part"] == part]


def table(rows: list[dict]) -> str:
    parts = []
    for row in _of(rows, "patterns"):
        lines = [
            [f"{v:.2f}", f"`{train}`"]
            for v, train in zip(row["figures"]["v_init"], row["figures"]["spikes"], strict=True)
        ]
        text = f"Spikes of one IF neuron under a constant current of {row['cell']['current']}."
        parts += [text, markdown(["V[0]", "spikes"], lines)]
    mapping = _of(rows, "mapping")
    if mapping:
        lines = [
            [
                row["cell"]["v_init"],
                sum(map(sum, row["figures"]["grid"])),
                row["figures"]["weights"],
                row["figures"]["exact"],
            ]
            for row in mapping
        ]
        header = ["V[0]", "pairs of 256 on the grid", "weights of the grid", "for all weights"]
        parts += ["Reachable pairs of input and output, T = 4.", markdown(header, lines)]
    fits = _of(rows, "convergence")
    if fits:
        lines = []
        for row in fits:
            cell, figures = row["cell"], row["figures"]
            last = [
                f"{figures[name]['trained'][-1]:.3f} ({figures[name]['predicted'][-1]:.3f})"
                for name in LOSSES
            ]
            order = sorted(LOSSES, key=lambda name: figures[name]["predicted"][-1])
            lines.append(
                [cell["input"], cell["T"], cell["steps"], cell["seed"], *last, ", ".join(order)]
            )
        header = ["input", "T", "training steps", "seed", *LOSSES, "lowest first"]
        text = (
            f"Trained loss after the last training step, {fits[0]['cell']['samples']} samples; in "
            "brackets the cross-entropy of the prediction, by which the losses are ordered."
        )
        parts += [text, markdown(header, lines)]
    return "\n\n".join(parts)


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 10), layout="constrained")
    first, second, third = figure.subfigures(3, 1, height_ratios=(1, 1.6, 1.2))
    for row in _of(rows, "patterns"):
        ax = first.subplots()
        spikes = torch.tensor([[int(s) for s in train] for train in row["figures"]["spikes"]])
        plot_firing_patterns(spikes.T.bool(), [f"{v:.2f}" for v in row["figures"]["v_init"]], ax)
        ax.set_ylabel("V[0]")
    mapping = _of(rows, "mapping")
    if mapping:
        axes = second.subplots(1, len(mapping), squeeze=False)[0]
        for ax, row in zip(axes, mapping, strict=True):
            plot_pattern_mapping(torch.tensor(row["figures"]["grid"]).bool(), ax)
            ax.set_title(f"V[0] {row['cell']['v_init']}: {ax.get_title()}", fontsize=9)
            ax.tick_params(labelsize=6.5)
    groups: dict[tuple, list[dict]] = {}
    for row in _of(rows, "convergence"):
        groups.setdefault((row["cell"]["input"], row["cell"]["T"]), []).append(row)
    if groups:
        axes = third.subplots(1, len(groups), squeeze=False)[0]
        for ax, ((kind, num_steps), own) in zip(axes, groups.items(), strict=True):
            for color, name in enumerate(LOSSES):
                for row in own:
                    curves = row["figures"][name]
                    for what, style in (("trained", "-"), ("predicted", ":")):
                        label = f"{name}, {what}" if row is own[0] else None
                        ax.plot(curves["step"], curves[what], style, color=f"C{color}", label=label)
            ax.set_title(f"{kind} input, T = {num_steps}")
            ax.set_xlabel("training step")
        axes[0].set_ylabel("cross-entropy")
        legend_below(third, axes[0], 3)
    return figure
