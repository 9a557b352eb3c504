"""The speed guard: what the package costs over its peers, as ratios that a later commit must keep.

Each ratio is a cost of this package over the same cost of a peer that ran in turn with it, so that
smaller is better and a faster machine changes little. Times are medians; bytes are counted tensor
by tensor and are the same on every machine. Every row names the commit that it was measured at.

    python examples/benchmarks speed --size medium
    python examples/benchmarks compare OLD/speed-medium.json NEW/speed-medium.json
"""

from __future__ import annotations

import copy
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmarks import imp_node, pruning, reversible, turn_on
from benchmarks.framework.record import markdown

TITLE = "Speed guard: costs over those of a peer"
IMAGES = False

#: how much larger a ratio may become
TIME, MEMORY = 0.25, 0.02


def turn_on_loop(short: bool) -> float:
    times = turn_on.cpu_cell([16, 16, 32, 8, 8], True, 5 if short else 25)
    own, loop = times["multi-step"], times["loop x_seq[t]"]
    return statistics.median(a / b for a, b in zip(own, loop, strict=True))


def imp_over_host(short: bool, imp: type = imp_node.IMPLIFNode) -> float:
    shape = (4, 8, 32, 8, 8) if short else (4, 16, 64, 16, 16)
    own = imp_node.NODES[imp]
    return statistics.median(imp_node.node_ratios(imp, own, shape, 9 if short else 51))


def loss_memory(short: bool) -> float:
    """The worst of the losses and kinds of target."""
    return max(imp_node.loss_ratios((8, 32, 100) if short else (16, 256, 1000)).values())


def two_cells(short: bool, steps: int) -> tuple:
    """A reversible cell, its twin on plain autograd, and an input of so many steps."""
    channels, side, batch = ([8, 16, 24], 16, 2) if short else ([48, 96, 144], 32, 4)
    ours = reversible.build(channels, 0.5)
    plain = copy.deepcopy(ours)
    plain.memory = "autograd"
    return ours, plain, [torch.randn(batch, 3, side, side)] * steps


def reversible_time(short: bool, steps: int = 8) -> float:
    ours, plain, x_seq = two_cells(short, steps)
    ((processor, _),) = reversible.time_ratios([ours], plain, x_seq, 5 if short else 9)
    return processor


def reversible_held(short: bool, steps: int = 8) -> float:
    ours, plain, x_seq = two_cells(short, steps)
    return reversible.memory(ours, x_seq, 1)[0] / reversible.memory(plain, x_seq, 1)[0]


def reversible_peak(short: bool, steps: int = 8) -> float:
    ours, plain, x_seq = two_cells(short, steps)
    return reversible.memory(ours, x_seq, 1)[1] / reversible.memory(plain, x_seq, 1)[1]


def pruner_step(short: bool, phase: str = "compress") -> float:
    trained, stepped = pruning.step_times(short, 3 if short else 9)[phase]
    return statistics.median(s / t for s, t in zip(stepped, trained, strict=True))


def selection(short: bool) -> float:
    times = pruning.selection_times(*((1_000_000, 5) if short else (10_000_000, 15)))
    return statistics.median(ours / plain for plain, ours in times)


#: name: what is measured, and its tolerance
RATIOS: dict[str, tuple[Callable[[bool], float], float]] = {
    "turn-on, multi-step over a loop of single steps: time": (turn_on_loop, TIME),
    "IMP LIF over the host's LIF: time": (imp_over_host, TIME),
    "losses over cross-entropy, worst: peak memory": (loss_memory, MEMORY),
    "reversible over autograd, T = 8: time": (reversible_time, TIME),
    "reversible over autograd, T = 8: memory held": (reversible_held, MEMORY),
    "reversible over autograd, T = 8: peak memory": (reversible_peak, MEMORY),
    "pruner step over training step, compressing: time": (pruner_step, TIME),
    "selection over gather, topk and kthvalue: time": (selection, TIME),
}
MORE: dict[str, tuple[Callable[[bool], float], float]] = {
    "IMP IF over the host's IF: time": (partial(imp_over_host, imp=imp_node.IMPIFNode), TIME),
    "reversible over autograd, T = 16: memory held": (partial(reversible_held, steps=16), MEMORY),
    "pruner step over training step, fine-tuning: time": (
        partial(pruner_step, phase="finetune"),
        TIME,
    ),
}


def cells(size: str) -> list[dict]:
    return [{"ratio": name} for name in (RATIOS if size == "short" else RATIOS | MORE)]


def measure(cell: dict, context) -> dict:
    if torch.device(context.device).type != "cpu":
        raise RuntimeError(f"the speed guard runs on a CPU, got --device {context.device}")
    torch.manual_seed(0)
    function, tolerance = (RATIOS | MORE)[cell["ratio"]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        value = function(context.size == "short")
    finally:
        torch.set_num_threads(threads)
    return {"value": value, "tolerance": tolerance, "commit": commit()}


def commit() -> str:
    """The commit of this tree, with a mark where files differ from it."""
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        return "unknown"
    return done.stdout.strip()


def table(rows: list[dict]) -> str:
    header = ["cost over that of its peer", "ratio", "may grow by", "commit"]
    lines = []
    for row in rows:
        found = row["figures"]
        grow = f"{found['tolerance']:.0%}"
        lines.append([row["cell"]["ratio"], found["value"], grow, f"`{found['commit']}`"])
    return markdown(header, lines)
