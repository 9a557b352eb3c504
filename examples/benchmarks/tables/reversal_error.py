"""Error of the gradient of a reversed cell, against decay and T.

One cell of three levels of convolutions with feedback, the same weights and inputs on every side.
The oracle is plain autograd in float64. In float32 run ``memory='reversible'``, plain autograd, and
naive inversion: nothing is kept but the last potentials; u[t-1] = (u[t] - f) / a is computed step
by step, and spikes and windows are computed again from what comes out. A second reversible cell has
decays of its own at every step, as the columns of T-RevSNN have, whose gradients need potentials
that are rebuilt. Figures are the relative L2 distances of all gradients, and the share of spikes
that naive inversion got wrong.
"""

from __future__ import annotations

import copy
import math
import statistics

import torch
from benchmarks.framework.record import doubling_axis, legend_below, markdown
from torch import nn
from torch.nn.functional import interpolate

from sj_ext.layer import TemporalReversible
from sj_ext.neuron import TurnOffNode

TITLE = "Gradient error of reversal"
IMAGES = False

CHANNELS, SIDE, BATCH = (8, 12, 16), 16, 2


class Level(nn.Module):
    """Down from the level beneath, up from the level above, a turn-off neuron between two maps."""

    def __init__(self, below: int, channels: int, above: int | None, stride: int):
        super().__init__()
        self.down = nn.Conv2d(below, channels, 3, stride, 1)
        self.up = None if above is None else nn.Conv2d(above, channels, 1, bias=False)
        self.body = nn.Sequential(TurnOffNode(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, below, above):
        h = self.down(below)
        if above is not None:
            h = h + interpolate(self.up(above), size=h.shape[-2:])
        return h + self.body(h)


def build(decay: float, steps_with_own: int = 0) -> TemporalReversible:
    """One decay for each level, or one for each level and each of ``steps_with_own`` steps."""
    below, above = (3, *CHANNELS[:-1]), (*CHANNELS[1:], None)
    levels = [
        Level(b, c, a, 1 if i == 0 else 2)
        for i, (b, c, a) in enumerate(zip(below, CHANNELS, above, strict=True))
    ]
    decays = [decay] * len(levels)
    cell = TemporalReversible(levels, [decays] * steps_with_own if steps_with_own else decays)
    cell.step_mode = "m"
    return cell


def gradients(cell: TemporalReversible, x_seq: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of sum(weight * top potentials), as one vector in float64."""
    cell.reset()
    loss = (cell(x_seq) * weight).sum()
    cell.reset()
    return _flat(torch.autograd.grad(loss, list(cell.parameters())))


def _flat(grads) -> torch.Tensor:
    return torch.cat([g.double().flatten() for g in grads])


@torch.no_grad()
def roll_out(cell: TemporalReversible, x_seq: torch.Tensor) -> list[list[torch.Tensor]]:
    """Potentials ``u[t][l]``, with ``u[0]`` after the first step."""
    spikes, potentials = [None] * cell.num_levels, []
    u = [0.0] * cell.num_levels
    for x in x_seq:
        below, now = x, []
        for level, f in enumerate(cell.levels):
            above = spikes[level + 1] if level + 1 < cell.num_levels else None
            u[level] = cell.decays[level] * u[level] + f(below, above)
            below = (u[level] >= cell.v_threshold).to(x.dtype)
            now.append(below)
        spikes = now
        potentials.append(list(u))
    return potentials


def naive_gradients(cell, x_seq, weight) -> tuple[torch.Tensor, float]:
    """Gradients by inversion of the last potentials, and the share of spikes that came out wrong.

    The last level comes first at each step, as when a cell is undone by hand.
    """
    true = roll_out(cell, x_seq)
    levels, threshold = range(cell.num_levels), cell.v_threshold
    u = list(true[-1])
    carried = [torch.zeros_like(v) for v in u]  # gradient of u[t] by way of u[t + 1]
    from_later = [torch.zeros_like(v) for v in u]  # gradient of s[t] by way of step t + 1
    grads = {p: torch.zeros_like(p) for p in cell.parameters()}
    wrong = total = 0

    def fires(v):
        return (v >= threshold).to(v.dtype)

    for t in reversed(range(len(x_seq))):
        before: list = [None] * cell.num_levels
        from_above = from_later
        from_later = [torch.zeros_like(v) for v in u]
        for level in reversed(levels):
            wrong += int((fires(u[level]) != fires(true[t][level])).sum())
            total += u[level].numel()
            below = x_seq[t] if level == 0 else fires(u[level - 1])
            above = None
            if t > 0 and level + 1 < cell.num_levels:
                above = fires(before[level + 1])
            window = cell.surrogate_function
            v = (u[level] - threshold).requires_grad_()
            (slope,) = torch.autograd.grad(window(v).sum(), v)
            g = carried[level] + slope * from_above[level]
            if level == cell.num_levels - 1:
                g = g + weight[t]
            inputs = [z for z in (below, above) if z is not None]
            for z in inputs:
                z.requires_grad_(z is not x_seq[t])
            module = cell.levels[level]
            parameters = list(module.parameters())
            wanted = [z for z in inputs if z.requires_grad]
            with torch.enable_grad():
                f = module(below, above)
            found = torch.autograd.grad(f, [*wanted, *parameters], g, allow_unused=True)
            into = dict(zip(map(id, wanted), found, strict=False))
            for p, own in zip(parameters, found[len(wanted) :], strict=True):
                if own is not None:
                    grads[p] += own
            if level > 0:
                from_above[level - 1] = from_above[level - 1] + into[id(below)]
            if above is not None:
                from_later[level + 1] = from_later[level + 1] + into[id(above)]
            decay = cell.decays[level]
            with torch.no_grad():
                before[level] = (u[level] - f) / decay
                if t > 0:  # the potential before the first step is 0, and known to be
                    grads[decay] += (g * before[level]).sum()
                carried[level] = decay.detach() * g
        u = before
    return _flat(grads.values()), wrong / total


def cells(size: str) -> list[dict]:
    if size == "short":
        decays, steps, seeds = (1.0, 0.5, 0.01), (2, 4), (0,)
    else:
        decays, steps, seeds = (1.0, 0.9, 0.5, 0.25, 0.1, 0.01, 0.001), (2, 4, 8, 16, 32), (0, 1, 2)
    return [{"decay": a, "T": t, "seed": s} for a in decays for t in steps for s in seeds]


def measure(cell: dict, context) -> dict:
    torch.manual_seed(cell["seed"])
    net = build(cell["decay"]).to(context.device)
    x_seq = torch.randn(cell["T"], BATCH, 3, SIDE, SIDE, device=context.device)
    top = SIDE >> (len(CHANNELS) - 1)
    weight = torch.randn(cell["T"], BATCH, CHANNELS[-1], top, top, device=context.device)
    oracle = copy.deepcopy(net).double()
    oracle.memory = "autograd"
    exact = gradients(oracle, x_seq.double(), weight.double())
    own = build(cell["decay"], cell["T"]).to(context.device)
    own.levels.load_state_dict(net.levels.state_dict())
    own_oracle = copy.deepcopy(own).double()
    own_oracle.memory = "autograd"
    own_exact = gradients(own_oracle, x_seq.double(), weight.double())
    ours = gradients(net, x_seq, weight)
    plain = copy.deepcopy(net)
    plain.memory = "autograd"
    naive, wrong = naive_gradients(net, x_seq, weight)
    differ = [
        (a >= net.v_threshold) != (b >= net.v_threshold)
        for one, other in zip(roll_out(net, x_seq), roll_out(oracle, x_seq.double()), strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return {
        "reversible": relative(ours, exact),
        "per_step": relative(gradients(own, x_seq, weight), own_exact),
        "autograd": relative(gradients(plain, x_seq, weight), exact),
        "naive": relative(naive, exact),
        "naive_wrong_spikes": wrong,
        "forward_flips": sum(int(d.sum()) for d in differ),
    }


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """Relative L2 distance; None where it is not finite, for which JSON has no number."""
    error = float((found - wanted).norm() / wanted.norm())
    return error if math.isfinite(error) else None


def _medians(rows: list[dict]) -> list[tuple[float, int, dict, int]]:
    """Over the seeds, where float32 and float64 fire alike; and how many seeds were left out."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["cell"]["decay"], row["cell"]["T"]), []).append(row["figures"])
    result = []
    for (decay, num_steps), own in groups.items():
        alike = [f for f in own if f["forward_flips"] == 0]
        middle = {
            key: statistics.median(math.inf if f[key] is None else f[key] for f in alike)
            for key in ("reversible", "per_step", "autograd", "naive", "naive_wrong_spikes")
            if alike
        }
        result.append((decay, num_steps, middle, len(own) - len(alike)))
    return result


def _shown(error: float | None) -> str:
    if error is None:
        return ""
    return f"{error:.1e}" if math.isfinite(error) else "not finite"


def table(rows: list[dict]) -> str:
    header = ["decay", "T", "reversible", "decays of every step", "autograd, float32"]
    header.append("naive inversion")
    header += ["its wrong spikes", "seeds left out"]
    lines = [
        [
            decay,
            num_steps,
            *(_shown(m.get(key)) for key in ("reversible", "per_step", "autograd", "naive")),
            f"{m['naive_wrong_spikes']:.2%}" if m else "",
            left_out,
        ]
        for decay, num_steps, m, left_out in _medians(rows)
    ]
    text = (
        "Relative L2 distance from float64 autograd, medians over seeds. A seed is left out where "
        "the forward pass itself fires differently in float32 and in float64."
    )
    return f"{text}\n\n{markdown(header, lines)}"


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    medians = [entry for entry in _medians(rows) if entry[2]]
    for ax, key in zip(axes, ("reversible", "naive"), strict=True):
        for decay in dict.fromkeys(entry[0] for entry in medians):
            own = [(t, m[key]) for a, t, m, _ in medians if a == decay and math.isfinite(m[key])]
            ax.semilogy(*zip(*own, strict=True), marker=".", label=f"decay {decay:g}")
        doubling_axis(ax, [entry[1] for entry in medians])
        ax.set_title("sj_ext" if key == "reversible" else "naive inversion")
        ax.set_xlabel("T")
    axes[0].set_ylabel("relative error of the gradient")
    legend_below(figure, axes[1], 4)
    return figure
