"""Speed of the turn-on neuron against its peers, forward and backward, all sides in one run.

On a CPU, at T = 16: the multi-step node against a loop of T single steps of itself (written with
``x_seq[t]``, as SpikingJelly writes it, and with ``unbind``, whose backward pass is cheaper),
against the same sum in plain autograd, and against SpikingJelly's ``IFNode`` and ``LIFNode``.

With a GPU (``--device cuda``): the CuPy kernel against the node on torch, SpikingJelly's IF and LIF
on the fastest backend that they have, and a copy of the same size, for T of 4 to 32 and T N of 2^16
to 2^28.

Usage: python examples/benchmarks/turn_on.py [--device cpu|cuda] [--short] [--json FILE]
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from sj_ext import host
from sj_ext.neuron import TurnOnNode
from sj_ext.surrogate import Rect

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # examples/, also as a script

from command_line import Command, device, new_file  # noqa: E402
from timing import interleaved  # noqa: E402


def if_node(**arguments) -> torch.nn.Module:
    return host.neuron.IFNode(surrogate_function=Rect(), step_mode="m", **arguments)


def lif_node(**arguments) -> torch.nn.Module:
    return host.neuron.LIFNode(surrogate_function=Rect(), step_mode="m", **arguments)


# On a CPU


def loop_indexed(node, x_seq):
    return torch.stack([node(x_seq[t]) for t in range(len(x_seq))])


def loop_unbound(node, x_seq):
    return torch.stack([node(x) for x in x_seq.unbind(0)])


def plain_autograd(node, x_seq):
    """The neuron as one would write it: T autograd nodes for every operator."""
    decay, u, spikes = node.effective_decay, 0.0, []
    for x in x_seq.unbind(0):
        u = decay * u + x
        spikes.append(node.surrogate_function(u - node.v_threshold))
    return torch.stack(spikes)


def whole(node, x_seq):
    return node(x_seq)


def training(forward: Callable, node, x_seq: torch.Tensor, grad: torch.Tensor) -> Callable:
    """Forward and backward, once, from rest."""
    x = x_seq.detach().requires_grad_()
    node.reset()
    return lambda: forward(node, x).backward(grad)


def cpu_cell(shape: Sequence[int], learnable: bool, least: int) -> dict[str, list[float]]:
    """Seconds of every side, over interleaved repeats, for an input of ``[T, N, *]``.

    There are ``least`` repeats from 8 million elements on; below, more, as a run is short.
    """
    repeats = max(least, least * 2**23 // math.prod(shape))
    x_seq = torch.randn(*shape)
    grad = torch.randn_like(x_seq)
    multi = TurnOnNode(step_mode="m", learnable_decay=learnable)
    single = TurnOnNode(step_mode="s", learnable_decay=learnable)
    sides = {
        "multi-step": (whole, multi),
        "loop x_seq[t]": (loop_indexed, single),
        "loop unbind": (loop_unbound, single),
        "plain autograd": (plain_autograd, multi),
        "host IF": (whole, if_node()),
        "host LIF": (whole, lif_node()),
    }
    steps = {
        name: partial(training, forward, node, x_seq, grad)
        for name, (forward, node) in sides.items()
    }
    return interleaved(steps, repeats, clock=time.perf_counter)


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(taken) for name, taken in times.items()}


def cpu_report(short: bool) -> list[dict]:
    """Medians over interleaved repeats; prints a table."""
    steps, repeats = 16, 9 if short else 15
    shapes = [(16, 32, 8), (32, 64, 16)] if short else [(16, 32, 8), (32, 64, 16), (64, 64, 32)]
    rows = []
    for batch, channels, size in shapes:
        shape = [steps, batch, channels, size, size]
        for learnable in (False, True):
            times = cpu_cell(shape, learnable, repeats)
            middle = medians(times)
            ratio = {name: value / middle["multi-step"] for name, value in middle.items()}
            rows.append(
                {
                    "shape": shape,
                    "learnable_decay": learnable,
                    "median_ms": {name: 1e3 * value for name, value in middle.items()},
                    "ratio": ratio,
                }
            )
            print(f"\n{shape}, decay {'learned' if learnable else 'fixed'}")
            for name, value in middle.items():
                low, high = min(times[name]), max(times[name])
                print(
                    f"  {name:15s} {1e3 * value:9.3f} ms (from {1e3 * low:.3f} to {1e3 * high:.3f})"
                    f"  {ratio[name]:6.2f} x multi-step"
                )
    return rows


# On a GPU


def event_milliseconds(run: Callable[[int], object], repeats: int) -> float:
    """Median time of ``run(i)`` by device events; i counts up, so that inputs can take turns."""
    for i in range(5):
        run(i)
    torch.cuda.synchronize()
    pairs = []
    for i in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(i)
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def traffic(steps: int, columns: int, itemsize: int, learnable: bool) -> tuple[int, int]:
    """Bytes that forward and backward cannot do without."""
    elements, bits = steps * columns, steps * columns // 8
    forward = 2 * elements * itemsize + bits + 4 * columns
    return forward, (3 if learnable else 2) * elements * itemsize + bits


def gpu_sides(learnable: bool) -> dict[str, torch.nn.Module]:
    arguments = {"step_mode": "m", "learnable_decay": learnable}
    sides: dict[str, torch.nn.Module] = {
        "cupy": TurnOnNode(backend="cupy", **arguments),
        "torch": TurnOnNode(**arguments),
    }
    backend = {"backend": "cupy"} if host.GENERATION == 1 else {}
    sides["host IF"], sides["host LIF"] = if_node(**backend), lif_node(**backend)
    return {name: node.cuda() for name, node in sides.items()}


def gpu_cell(exponent: int, steps: int, learnable: bool, short: bool = False) -> list[dict]:
    """Every side on T = ``steps`` steps of 2^``exponent`` elements in all, a row each."""
    columns = 2**exponent // steps
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = max(1, min(16, 4 * cache // 2 ** (exponent + 2)))  # inputs that take turns
    inputs = [torch.randn(steps, columns, device="cuda") for _ in range(copies)]
    grad = torch.randn(steps, columns, device="cuda")
    target = torch.empty_like(grad)
    repeats = 20 if short else 50 if exponent > 24 else 200
    copy_ms = event_milliseconds(lambda i: target.copy_(inputs[i % len(inputs)]), repeats)
    bandwidth = 2 * 4 * 2**exponent / copy_ms  # bytes per millisecond
    needs = traffic(steps, columns, 4, learnable)
    rows = []
    for name, node in gpu_sides(learnable).items():
        row = {
            "elements": 2**exponent,
            "steps": steps,
            "learnable_decay": learnable,
            "side": name,
            "copy_ms": copy_ms,
            "copy_GB_per_s": bandwidth / 1e6,
        }
        row.update(time_node(node, inputs, grad, repeats))
        if name in ("cupy", "torch"):
            for part, count in zip(("forward", "backward"), needs, strict=True):
                row[f"{part}_bytes"] = count
                row[f"{part}_of_copy"] = count / row[f"{part}_ms"] / bandwidth
        rows.append(row)
    return rows


def gpu_report(short: bool) -> list[dict]:
    """Medians of forward, backward and both, and bytes over the measured copy bandwidth."""
    rows = []
    for exponent in (16, 22) if short else range(16, 29, 2):
        for steps in (8,) if short else (4, 8, 16, 32):
            for learnable in (False, True):
                for row in gpu_cell(exponent, steps, learnable, short):
                    rows.append(row)
                    print(
                        f"2^{exponent} T={steps:2d} {'learned' if learnable else 'fixed':7s} "
                        f"{row['side']:8s} forward {row['forward_ms']:8.4f} backward "
                        f"{row['backward_ms']:8.4f} both {row['both_ms']:8.4f} ms  "
                        f"of copy {row.get('forward_of_copy', 0):.2f} "
                        f"{row.get('backward_of_copy', 0):.2f}"
                    )
    return rows


def time_node(node, inputs, grad, repeats) -> dict[str, float]:
    """Forward alone with gradients on, both, and their difference."""
    leaves = [x.detach().requires_grad_() for x in inputs]

    def forward(i):
        node.reset()
        return node(leaves[i % len(leaves)])

    def both(i):
        x = leaves[i % len(leaves)]
        x.grad = None
        forward(i).backward(grad)

    forward_ms, both_ms = event_milliseconds(forward, repeats), event_milliseconds(both, repeats)
    return {"forward_ms": forward_ms, "backward_ms": both_ms - forward_ms, "both_ms": both_ms}


def make_parser() -> Command:
    parser = Command(__doc__, short={})
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=new_file, help="file to write the figures to")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse(argv)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, SpikingJelly {host.VERSION}"
    )
    if arguments.device == "cuda":
        rows = gpu_report(arguments.short)
    else:
        rows = cpu_report(arguments.short)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
