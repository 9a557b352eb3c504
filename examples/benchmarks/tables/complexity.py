"""Orders of training memory and computation, measured, for seven ways to train one network.

The family: L convolutions 3 x 3 of C channels, each followed by spiking neurons, on inputs
[T, N, C, H, W]; the loss is on the last layer's output at every step. Bytes are counted for a
training step (gradients exist already), over a grid of L and T, and

    peak = c + a L + b T + d L T

is fitted by least squares, in units of one layer's activations at one step (N C H W float32): ``d``
is what a layer holds for each step, ``a`` for each layer, ``b`` for each step. Floating-point
operations are counted too, by PyTorch's formulas: a training step over a forward pass is 3 where
the backward pass computes the gradients of inputs and weights, and 4 where it also runs forward
again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy
import torch
from benchmarks.framework.record import doubling_axis, legend_below, markdown
from benchmarks.lib.flops import Flops
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.layer import ReversibleSequence, TemporalReversible

TITLE = "Complexity, measured"
IMAGES = False

BATCH, CHANNELS, SIDE = 2, 16, 16
COLUMNS = "TemporalReversible, columns"

#: what the papers give, as T-RevSNN's paper lists it: training memory, training time, inference
PAPER = {
    "STBP": ("O(L T)", "O(L T)", "O(T)"),
    "checkpoints": ("not listed", "not listed", "not listed"),
    "OTTT": ("O(L)", "O(L T)", "O(T)"),
    "SLTT": ("O(L)", "O(L T)", "O(T)"),
    "reversible blocks": ("O(T)", "O(L T)", "O(T)"),
    "TemporalReversible": ("O(L)", "O(L T)", "O(T)"),
    COLUMNS: ("O(L)", "O(L T), columns 1/T wide", "O(1)"),
}


def _conv(below: int = CHANNELS, channels: int = CHANNELS) -> host.layer.Conv2d:
    return host.layer.Conv2d(below, channels, 3, padding=1, bias=False)


# Ways to train: each returns the network and one training step


def _stbp(depth: int, checkpointed: bool = False):
    blocks = nn.ModuleList(nn.Sequential(_conv(), host.neuron.LIFNode()) for _ in range(depth))
    host.functional.set_step_mode(blocks, "m")

    def run(x_seq):
        host.functional.reset_net(blocks)
        # stopping early raises an exception, which TorchScript in 0.0.0.0.14's neurons swallows
        with set_checkpoint_early_stop(False):
            for block in blocks:
                x_seq = (
                    checkpoint(_from_rest, block, x_seq, use_reentrant=False)
                    if checkpointed
                    else block(x_seq)
                )
        host.functional.reset_net(blocks)
        return x_seq

    return blocks, run, lambda x_seq: run(x_seq).mean().backward()


def _from_rest(block, x_seq):
    host.functional.reset_net(block)
    out = block(x_seq)
    host.functional.reset_net(block)
    return out


def _online(depth: int, node: str):
    modules = [m for _ in range(depth) for m in (_conv(), getattr(host.neuron, node)())]
    net = host.layer.OTTTSequential(*modules) if node == "OTTTLIFNode" else nn.Sequential(*modules)

    def run(x_seq):
        host.functional.reset_net(net)
        outputs = [net(x) for x in x_seq]
        host.functional.reset_net(net)
        return outputs

    def step(x_seq):
        host.functional.reset_net(net)
        for x in x_seq:
            out = net(x)
            spikes = out[0] if isinstance(out, list) else out
            (spikes.mean() / len(x_seq)).backward()
        host.functional.reset_net(net)

    return net, run, step


def _depth_reversible(depth: int):
    half = CHANNELS // 2

    def part() -> nn.Module:
        net = nn.Sequential(_conv(half, half), host.neuron.LIFNode())
        host.functional.set_step_mode(net, "m")
        return net

    net = ReversibleSequence([(part(), part()) for _ in range(depth)])
    return net, net, lambda x_seq: net(x_seq).mean().backward()


class _Level(nn.Module):
    """A convolution of the spikes beneath; those above come in through half of the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, below, above):
        return self.conv(below if above is None else below + above)


def _temporal(depth: int, num_steps: int = 0, channels: int = CHANNELS):
    """With ``num_steps``, one column of weights per step."""
    columns = [[_Level(channels) for _ in range(depth)] for _ in range(num_steps or 1)]
    net = TemporalReversible(columns if num_steps else columns[0], [0.5] * depth)
    net.step_mode = "m"

    def run(x_seq):
        net.reset()
        out = net(x_seq)
        net.reset()
        return out

    return net, run, lambda x_seq: run(x_seq).mean().backward()


WAYS: dict[str, Callable] = {
    "STBP": _stbp,
    "checkpoints": partial(_stbp, checkpointed=True),
    "OTTT": partial(_online, node="OTTTLIFNode"),
    "SLTT": partial(_online, node="SLTTLIFNode"),
    "reversible blocks": _depth_reversible,
    "TemporalReversible": _temporal,
}
if not host.ONLINE_NEURONS:
    WAYS = {name: way for name, way in WAYS.items() if name not in ("OTTT", "SLTT")}


def cells(size: str) -> list[dict]:
    depths, steps = ((2, 6), (2, 8)) if size == "short" else ((2, 4, 8, 16), (2, 4, 8, 16, 32))
    grid = [(depth, num_steps) for depth in depths for num_steps in steps]
    training = [{"way": way, "L": depth, "T": t} for way in WAYS for depth, t in grid]
    # T columns that have the weights of one network of CHANNELS channels together
    columns = (1, 4) if size == "short" else (1, 4, 16)
    inference = [{"way": COLUMNS, "L": depths[-1], "T": t} for t in columns]
    return training + inference


def measure(cell: dict, context) -> dict:
    torch.manual_seed(0)
    depth, num_steps, way = cell["L"], cell["T"], cell["way"]
    channels = CHANNELS
    if way in WAYS:
        net, run, step = WAYS[way](depth)
    else:
        channels = CHANNELS // math.isqrt(num_steps)
        net, run, step = _temporal(depth, num_steps, channels)
    net.to(context.device)
    x = torch.rand(BATCH, channels, SIDE, SIDE, device=context.device)
    x_seq = x.unsqueeze(0).repeat(num_steps, *[1] * x.dim())
    step(x_seq)  # gradients exist from here on
    _, counted = activation_memory(lambda: step(x_seq))
    with Flops() as training:
        step(x_seq)
    net.eval()
    with torch.no_grad(), Flops() as inference:
        run(x_seq)
    return {
        "peak": counted.peak / (4 * BATCH * CHANNELS * SIDE * SIDE),
        "training_flops": training.total,
        "inference_flops": inference.total,
        "parameters": sum(p.numel() for p in net.parameters() if p.dim() > 1),
    }


def slopes(rows: list[dict]) -> numpy.ndarray:
    """c, a, b, d of the module's docstring."""
    terms = [(1, r["cell"]["L"], r["cell"]["T"], r["cell"]["L"] * r["cell"]["T"]) for r in rows]
    peaks = [row["figures"]["peak"] for row in rows]
    return numpy.linalg.lstsq(numpy.array(terms, float), numpy.array(peaks), rcond=None)[0]


def growth(rows: list[dict], axis: str, key: str) -> float:
    """Exponent in T or L, between its two largest values, at the largest L or T.

    1 is linear growth, 0 none.
    """
    other = "L" if axis == "T" else "T"
    most = max(row["cell"][other] for row in rows)
    own = sorted((r["cell"][axis], r["figures"][key]) for r in rows if r["cell"][other] == most)
    (x0, y0), (x1, y1) = own[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


def _ways(rows: list[dict]) -> list[str]:
    """Those of one network, as recorded: a record may come from another host than is installed."""
    return [way for way in dict.fromkeys(row["cell"]["way"] for row in rows) if way != COLUMNS]


def _plain(value: float) -> str:
    """Two digits, and no minus before a zero."""
    return f"{0.0 if abs(value) < 5e-3 else value:.2f}"


def table(rows: list[dict]) -> str:
    unit = 2 * BATCH * CHANNELS**2 * 9 * SIDE**2  # one convolution of one step
    lines = []
    for way in _ways(rows):
        own = [row for row in rows if row["cell"]["way"] == way]
        if len(own) < 4:
            continue
        largest = max(own, key=lambda row: (row["cell"]["L"], row["cell"]["T"]))
        line = [way, f"{growth(own, 'T', 'peak'):.2f}", f"{growth(own, 'L', 'peak'):.2f}"]
        line += [_plain(value) for value in slopes(own)[[3, 1, 2]]]
        training, inference = (largest["figures"][f"{k}_flops"] for k in ("training", "inference"))
        line += [f"{training / inference:.2f}", f"{growth(own, 'T', 'inference_flops'):.2f}"]
        lines.append([*line, *PAPER[way]])
    parts = []
    if lines:
        header = ["way", "peak: exponent in T", "in L", "per layer and step", "per layer"]
        header += ["per step", "training FLOPs over forward", "forward: exponent in T"]
        header += ["paper: memory", "training time", "inference"]
        parts.append(markdown(header, lines))
    lines = [
        [
            COLUMNS,
            row["cell"]["T"],
            row["figures"]["parameters"],
            f"{row['figures']['inference_flops'] / (unit * row['cell']['L']):.2f}",
            f"{row['figures']['training_flops'] / (unit * row['cell']['L']):.2f}",
            PAPER[COLUMNS][2],
        ]
        for row in rows
        if row["cell"]["way"] == COLUMNS
    ]
    if lines:
        header = ["", "T", "weights", "FLOPs of inference", "of training", "paper: inference"]
        text = (
            "T columns with the weights of one network of the family together; FLOPs over those of "
            "one pass of that network."
        )
        parts += [text, markdown(header, lines)]
    return "\n\n".join(parts)


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, axis, other in zip(axes, "TL", "LT", strict=True):
        most = max(row["cell"][other] for row in rows if row["cell"]["way"] != COLUMNS)
        for way in _ways(rows):
            own = sorted(
                (row["cell"][axis], row["figures"]["peak"])
                for row in rows
                if row["cell"]["way"] == way and row["cell"][other] == most
            )
            ax.semilogy(*zip(*own, strict=True), marker=".", label=way)
        doubling_axis(ax, [row["cell"][axis] for row in rows if row["cell"]["way"] != COLUMNS])
        ax.set_xlabel(f"{axis} ({other} = {most})")
    axes[0].set_ylabel("peak, in a layer's activations at a step")
    legend_below(figure, axes[0])
    return figure
