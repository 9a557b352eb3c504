"""Everything at once: initial potentials, reversible training, a budget of synaptic operations.

One chain of convolutions in five variants. Beside the plain one, of SpikingJelly's LIF neurons, the
reversible ones have turn-on neurons and batch normalisation of its own for each step, and with
initial potentials their levels start from learned ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from benchmarks.framework.record import Context, markdown
from benchmarks.lib.images import load
from benchmarks.lib.networks import OverTime, Pooled, convolution, lif
from benchmarks.lib.train import Recipe, accuracy, fit, in_units, operations, percent
from spikingjelly.activation_based import layer, neuron
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.functional import lts_cross_entropy, sdt_cross_entropy
from sj_ext.layer import TemporalReversible
from sj_ext.neuron import IMPLIFNode, TurnOffNode
from sj_ext.pruning import MinimaxPruner, Schedule, Stage

TITLE = "Everything together: accuracy, memory and energy beside the plain network"


@dataclass(frozen=True)
class Variant:
    """What differs from the plain network."""

    reversible: bool
    imp: bool
    budget: float = 1.0


VARIANTS = {
    "SpikingJelly's LIF, SDT": Variant(False, False),
    "initial potentials, LTS": Variant(False, True),
    "reversible, SDT": Variant(True, False),
    "reversible, initial potentials, LTS": Variant(True, True),
    "all, 20% of the synaptic operations": Variant(True, True, 0.2),
}


@dataclass(frozen=True)
class Size:
    seeds: int
    train: int | None
    test: int | None
    side: int
    widths: tuple[int, ...]
    num_steps: int
    recipe: Recipe


SIZES = {
    "short": Size(1, 320, 150, 8, (2, 24, 24), 2, Recipe(3, 1e-2, 32)),
    "medium": Size(3, 2000, 2000, 16, (16, 32, 64, 64), 4, Recipe(8, 4e-3, 50)),
    "full": Size(3, None, None, 32, (128, 256, 512, 512), 4, Recipe(200, 2e-3, 128, augment=True)),
}


def cells(size: str) -> list[dict]:
    return [
        {"variant": name, "seed": seed} for seed in range(SIZES[size].seeds) for name in VARIANTS
    ]


class Level(nn.Module):
    """A convolution, shared over the steps, and the batch normalisation of one step."""

    def __init__(self, conv: nn.Module, norm: nn.Module):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, below: torch.Tensor, above: torch.Tensor | None = None) -> torch.Tensor:
        return self.norm(self.conv(below))


class Reversible(nn.Module):
    """The chain as levels of turn-on neurons, with learned initial potentials on request."""

    def __init__(self, channels: int, widths: Sequence[int], num_steps: int, side: int, imp: bool):
        super().__init__()
        self.num_steps = num_steps
        self.stem = nn.Sequential(*convolution(channels, widths[0]))
        conv = [nn.Identity(), *(c for c, _ in _pairs(widths))]
        norms = [[nn.Identity(), *(n for _, n in _pairs(widths))] for _ in range(num_steps)]
        columns = [[Level(c, n) for c, n in zip(conv, row, strict=True)] for row in norms]
        self.cell = TemporalReversible(columns, [0.5] * len(widths), feedback=False)
        self.fire = TurnOffNode(step_mode="m")
        self.head = nn.Sequential(Pooled(), nn.Linear(widths[-1], 10))
        self.initial = None
        if imp:
            self.initial = nn.ParameterList(
                torch.empty(1, width, side >> i, side >> i).uniform_(-0.2, 0.2)
                for i, width in enumerate(widths)
            )
        self.no_weight_decay = {"initial"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        host.functional.reset_net(self)
        current = self.stem(x)
        for i, potential in enumerate(self.initial or ()):
            setattr(self.cell, f"u_{i}", potential.expand(len(x), *potential.shape[1:]))
        u_seq = self.cell([current] * self.num_steps)
        self.cell.reset()
        return self.head(self.fire(u_seq))


def _pairs(widths: Sequence[int]) -> list[list[nn.Module]]:
    """Convolution of stride 2 and normalisation from each width to the next."""
    return [convolution(a, b, stride=2) for a, b in itertools.pairwise(widths)]


def build(variant: Variant, channels: int, size: Size) -> nn.Module:
    if variant.reversible:
        return Reversible(channels, size.widths, size.num_steps, size.side, variant.imp)
    body: list[nn.Module] = [lif()]
    for pair in _pairs(size.widths):
        body += [*pair, lif()]
    body += [Pooled(), layer.Linear(size.widths[-1], 10)]
    stem = nn.Sequential(*convolution(channels, size.widths[0]))
    net = OverTime(stem, nn.Sequential(*body), size.num_steps)
    if variant.imp:
        sj_ext.swap_neurons(net, {neuron.LIFNode: IMPLIFNode}, imp_shape="neuron")
    return net


def measure(cell: dict, context: Context) -> dict:
    size, variant = SIZES[context.size], VARIANTS[cell["variant"]]
    train, test = load(context, size.side, size.train, size.test)
    torch.manual_seed(cell["seed"])
    net = build(variant, train.x.shape[1], size)
    loss = lts_cross_entropy if variant.imp else sdt_cross_entropy

    def pruner(net, optimizer, steps):
        # a third of the time at full size, which is a stage that cuts nothing
        dense = Stage(1.0, 1, steps // 3 - 1)
        stages = Schedule.geometric(variant.budget, steps - steps // 3).stages
        return MinimaxPruner(
            net,
            budget=variant.budget,
            resource="synops",
            schedule=Schedule((dense, *stages)),
            optimizer=optimizer,
        )

    made = fit(
        net,
        train,
        loss,
        size.recipe,
        seed=cell["seed"],
        device=context.device,
        make_pruner=pruner if variant.budget < 1 else None,
    )
    if made and not (made.finished and made.resource <= variant.budget):
        raise RuntimeError(f"{cell}: the budget is not met, the operations are at {made.resource}")
    counted = operations(net, test.x[:200].to(context.device))
    held, peak = _memory_per_image(net, train.x.to(context.device), loss)
    return {
        "accuracy": accuracy(net, test, cumulative=not variant.imp)[-1],
        "density": made.density if made else 1.0,
        "additions": counted.acs / 200,
        "nanojoules": counted.energy() / 200 / 1e3,
        "held": held,
        "peak": peak,
    }


def _memory_per_image(net: nn.Module, x: torch.Tensor, loss) -> tuple[float, float]:
    """Bytes that one more image adds to a training step: after forward, and at most."""
    net.train()
    y = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def forward(count):
        return loss(net(x[:count]), y[:count])

    def step(count):
        forward(count).backward()

    found = []
    for function, name in ((forward, "saved"), (step, "peak")):
        few, many = (
            getattr(activation_memory(functools.partial(function, n), device=x.device)[1], name)
            for n in (8, 24)
        )
        found.append((many - few) / 16)
        net.zero_grad()
        host.functional.reset_net(net)
    return tuple(found)


def table(rows: list[dict]) -> str:
    lines = []
    plain = next(iter(VARIANTS))
    for name in dict.fromkeys(row["cell"]["variant"] for row in rows):
        of = {key: _of(rows, name, key) for key in rows[0]["figures"]}
        lines.append(
            [
                name,
                percent(of["accuracy"]),
                f"{100 * sum(of['density']) / len(of['density']):.1f}%",
                *(in_units([v / 1024 for v in of[key]], ".1f") for key in ("held", "peak")),
                in_units([v / 1e3 for v in of["additions"]], ".0f"),
                in_units(of["nanojoules"], ".0f"),
            ]
        )
    seeds = len({row["cell"]["seed"] for row in rows})
    header = [
        "",
        "accuracy, %",
        "weights kept",
        "held, KiB",
        "peak, KiB",
        "additions, thousands",
        "energy, nJ",
    ]
    return "\n\n".join(
        [
            f"Mean ± standard error of {seeds} seeds; memory of a training step, operations and "
            f"energy are per image (the first line, {plain}, is the plain network):",
            markdown(header, lines),
        ]
    )


def _of(rows: list[dict], variant: str, name: str) -> list[float]:
    return [row["figures"][name] for row in rows if row["cell"]["variant"] == variant]
