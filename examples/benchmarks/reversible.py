"""Temporal reversibility against plain autograd: memory and time over T.

The same cell is run with memory='reversible' and with memory='autograd'. Bytes are counted tensor
by tensor (weights, their gradients and the input do not count): "held" is what the forward pass
leaves for the backward pass, "peak" the most that is alive at one moment of a training step; both
are given in units of one step's key potentials in float32. Time is the median over interleaved
repetitions of the ratio of two training steps, in processor time and on the clock. "kept" is the
reversible cell with recompute=False: levels keep their graph, as bits where they can.

    python examples/benchmarks/reversible.py            # 4 levels, 48 to 192 channels, 32 x 32
    python examples/benchmarks/reversible.py --short
"""

from __future__ import annotations

import copy
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate
from tqdm import tqdm

import sj_ext
from sj_ext.analysis import activation_memory
from sj_ext.layer import TemporalReversible
from sj_ext.neuron import TurnOffNode

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # examples/, also as a script

from command_line import Command, count  # noqa: E402
from timing import interleaved  # noqa: E402


class Block(nn.Module):
    """Turn-off neurons around a depthwise and a pointwise convolution, with a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            TurnOffNode(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, 4 * channels, 1),
            TurnOffNode(),
            nn.Conv2d(4 * channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Level(nn.Module):
    """Down from the level beneath, up from the level above, two blocks."""

    def __init__(self, below: int, channels: int, above: int | None, stride: int, dropout: float):
        super().__init__()
        self.down = nn.Conv2d(below, channels, 3, stride, 1, bias=False)
        self.up = None if above is None else nn.Conv2d(above, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(Block(channels), nn.Dropout(dropout), Block(channels))

    def forward(self, below: torch.Tensor, above: torch.Tensor | None) -> torch.Tensor:
        h = self.down(below)
        if above is not None:
            h = h + interpolate(self.up(above), size=h.shape[-2:])
        return self.blocks(self.norm(h))


def build(channels: list[int], decay: float, dropout: float = 0.1) -> TemporalReversible:
    """Level 0 keeps the input's resolution, every further level halves it."""
    above = [*channels[1:], None]
    below = [3, *channels]
    levels = [
        Level(b, c, a, 1 if i == 0 else 2, dropout)
        for i, (b, c, a) in enumerate(zip(below, channels, above, strict=False))
    ]
    return TemporalReversible(levels, [decay] * len(channels))


def train_step(cell: TemporalReversible, x_seq: list[torch.Tensor]) -> None:
    """One forward and one backward pass."""
    cell.reset()
    cell(x_seq).square().mean().backward()


def memory(cell: TemporalReversible, x_seq: list[torch.Tensor], state: int) -> tuple[float, float]:
    """Held and peak, in units of one step's key potentials."""

    def forward():
        total = cell(x_seq).mean()
        cell.reset()  # the states are the caller's, not what the backward pass needs
        return total

    cell.reset()
    loss, held = activation_memory(forward)
    loss.backward()  # gradients exist from here on, and do not count below
    _, step = activation_memory(lambda: train_step(cell, x_seq))
    cell.reset()
    return held.saved / state, step.peak / state


def time_ratios(
    cells: list[TemporalReversible],
    plain: TemporalReversible,
    x_seq: list[torch.Tensor],
    repeats: int,
) -> list[tuple[float, float]]:
    """Median ratio of training steps over those of ``plain``: processor time, clock."""
    ratios = []
    for i in range(repeats + 1):
        times = []
        for cell in (*cells, plain):
            clock, processor = time.perf_counter(), time.process_time()
            train_step(cell, x_seq)
            times.append((time.process_time() - processor, time.perf_counter() - clock))
        if i:  # the first round warms up
            ratios.append([[a / b for a, b in zip(own, times[-1], strict=True)] for own in times])
    return [
        tuple(statistics.median(column) for column in zip(*own, strict=True))
        for own in zip(*ratios, strict=True)
    ][:-1]


class Small(nn.Module):
    """A level that is too small for one step to fill a processor."""

    def __init__(self, below: int, features: int):
        super().__init__()
        self.down = nn.Linear(below, features)

    def forward(self, below: torch.Tensor, above: torch.Tensor | None) -> torch.Tensor:
        return 2 * self.down(below)


def chunks(short: bool, repeats: int) -> None:
    """Time and peak of a cell without feedback, by the number of steps undone as one batch."""
    num_steps, features, batch = (16, 64, 4) if short else (64, 256, 4)
    x_seq = torch.randn(num_steps, batch, features)
    base = TemporalReversible(
        [Small(features, features) for _ in range(3)], [0.5] * 3, feedback=False
    )
    print(f"chunk, without feedback: 3 levels of {features}, batch {batch}, T = {num_steps}")
    cells = []
    for chunk in (1, 4, num_steps):
        cells.append(copy.deepcopy(base))
        cells[-1].chunk = chunk
    sides = {str(cell.chunk): partial(partial, train_step, cell, x_seq) for cell in cells}
    times = interleaved(sides, 3 * repeats, warm_up=1)
    for cell in cells:
        _, step = activation_memory(lambda cell=cell: train_step(cell, x_seq))
        ratio = statistics.median(
            b / a for a, b in zip(times["1"], times[str(cell.chunk)], strict=True)
        )
        print(f"chunk {cell.chunk:<4} time {ratio:5.2f}   peak {step.peak / 1e6:6.2f} MB")


def make_parser() -> Command:
    parser = Command(__doc__, short={"repeats": 3})
    parser.add_argument("--repeats", type=count, default=9, help="training steps to time")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse(argv)
    channels, side, batch = ([8, 16, 24], 16, 2) if args.short else ([48, 96, 144, 192], 32, 4)
    steps = [2, 4] if args.short else [2, 4, 8, 16]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    state = 4 * batch * sum(c * (side >> i) ** 2 for i, c in enumerate(channels))

    print(
        f"sj_ext {sj_ext.__version__}, torch {torch.__version__}, {platform.machine()}, 1 thread; "
        f"channels {channels}, {side} x {side}, batch {batch}; one step's key potentials: "
        f"{state / 1e6:.2f} MB"
    )
    print(
        "T    held: reversible    kept  autograd   peak: reversible    kept  autograd   "
        "time ratio: cpu   clock   kept: cpu   clock"
    )
    for num_steps in tqdm(steps, leave=False, disable=None):
        ours = build(channels, 0.5)
        plain = copy.deepcopy(ours)
        plain.memory = "autograd"
        kept = copy.deepcopy(ours)
        kept.recompute = False
        x_seq = [torch.randn(batch, 3, side, side)] * num_steps
        held, peak = memory(ours, x_seq, state)
        held_kept, peak_kept = memory(kept, x_seq, state)
        held_plain, peak_plain = memory(plain, x_seq, state)
        (cpu, clock), (cpu_kept, clock_kept) = time_ratios([ours, kept], plain, x_seq, args.repeats)
        print(
            f"{num_steps:<4} {held:>16.3f}  {held_kept:>6.2f}  {held_plain:>8.2f}   "
            f"{peak:>16.2f}  {peak_kept:>6.2f}  {peak_plain:>8.2f}   "
            f"{cpu:>15.2f}   {clock:>5.2f}   {cpu_kept:>9.2f}   {clock_kept:>5.2f}"
        )
    chunks(args.short, args.repeats)


if __name__ == "__main__":
    main()
