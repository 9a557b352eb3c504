"""The turn-on neuron's speed, over its multi-step node and over SpikingJelly's neurons.

The measurements are those of ``turn_on.py``: with ``--device cuda`` the CuPy kernel, on a CPU the
ratios of the node on torch, and a table that says so. On CUDA ``examples/benchmarks/gpu_report.py``
also runs the kernel's tests.
"""

from __future__ import annotations

import torch
from benchmarks import turn_on
from benchmarks.framework.record import markdown

TITLE = "Kernel of the turn-on neuron"
IMAGES = False

STEPS = 16
SIDES = ("loop x_seq[t]", "loop unbind", "plain autograd", "host IF", "host LIF")


def cells(size: str) -> list[dict]:
    shapes = [[16, 32, 8], [32, 64, 16], [64, 64, 32]][: 1 if size == "short" else 3]
    if size == "full":
        shapes = []
    on_cpu = [
        {"shape": [STEPS, n, c, side, side], "learnable_decay": learnable}
        for n, c, side in shapes
        for learnable in (False, True)
    ]
    on_cuda = [
        {"exponent": exponent, "T": steps, "learnable_decay": learnable}
        for exponent in range(16, 29, 2)
        for steps in (4, 8, 16, 32)
        for learnable in (False, True)
    ]
    return on_cuda if size == "full" else on_cpu


def measure(cell: dict, context) -> dict:
    cuda = torch.device(context.device).type == "cuda"
    if ("exponent" in cell) != cuda:
        raise RuntimeError(
            "the full form of the kernel's table needs --device cuda, the others run on a CPU: "
            f"got --size {context.size} with --device {context.device}"
        )
    if cuda:
        return {"sides": turn_on.gpu_cell(cell["exponent"], cell["T"], cell["learnable_decay"])}
    repeats = 5 if context.size == "short" else 15
    times = turn_on.cpu_cell(cell["shape"], cell["learnable_decay"], repeats)
    return {
        "median_ms": {name: 1e3 * value for name, value in turn_on.medians(times).items()},
        "gpu": torch.cuda.is_available(),
    }


def table(rows: list[dict]) -> str:
    if rows and "exponent" in rows[0]["cell"]:
        return _gpu_table(rows)
    lines = []
    for row in rows:
        own, cell = row["figures"]["median_ms"], row["cell"]
        base = own["multi-step"]
        learned = "learned" if cell["learnable_decay"] else "fixed"
        shape = " x ".join(map(str, cell["shape"]))
        lines.append([shape, learned, base, *(f"{own[name] / base:.2f}" for name in SIDES)])
    gpu = any(row["figures"]["gpu"] for row in rows)
    why = "Not run on the GPU" if gpu else "No GPU could be had"
    text = (
        f"{why}, so the CuPy kernel was not timed. On a CPU, forward and backward "
        "of the multi-step node, and the time of its peers over it; medians of interleaved runs."
    )
    header = ["input [T, N, C, H, W]", "decay", "multi-step (ms)", *SIDES]
    return f"{text}\n\n{markdown(header, lines)}"


def _gpu_table(rows: list[dict]) -> str:
    header = ["elements", "T", "decay", "cupy (ms)", "of copy, forward", "backward"]
    header += ["torch", "host IF", "host LIF"]
    lines = []
    for row in rows:
        cell = row["cell"]
        sides = {side["side"]: side for side in row["figures"]["sides"]}
        base = sides["cupy"]
        line = [f"2^{cell['exponent']}", cell["T"]]
        line += ["learned" if cell["learnable_decay"] else "fixed", base["both_ms"]]
        line += [f"{base[f'{part}_of_copy']:.2f}" for part in ("forward", "backward")]
        others = ("torch", "host IF", "host LIF")
        line += [f"{sides[name]['both_ms'] / base['both_ms']:.2f}" for name in others]
        lines.append(line)
    text = (
        "Forward and backward; peers over the CuPy kernel. 'Of copy': the bytes that cannot be "
        "avoided over the time taken, as a share of the copy bandwidth measured in the same run."
    )
    return f"{text}\n\n{markdown(header, lines)}"
