"""T-RevSNN with more and fewer columns, and with and without the scaled residual.

Every column has the same width, so that a network of T columns has about T times the parameters and
operations of one column. The scaled residual is a factor for each channel of each block, which
starts at 0 (the paper), at 1 (its program), or is not there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from benchmarks.framework.record import Context, markdown
from benchmarks.lib.images import load
from benchmarks.lib.train import Recipe, accuracy, fit, percent
from torch import nn

from sj_ext.functional import tet_s_cross_entropy
from sj_ext.model import TRevSNN
from sj_ext.model.trevsnn.blocks import SpikingBlock

TITLE = "Ablations of T-RevSNN: the number of columns T, and the scaled residual"


@dataclass(frozen=True)
class Size:
    seeds: int
    train: int | None
    test: int | None
    side: int
    channels: tuple[int, ...]
    steps: tuple[int, ...]
    recipe: Recipe


SIZES = {
    "short": Size(1, 192, 150, 16, (4, 6, 8, 8), (1, 2), Recipe(2, 1e-2, 32)),
    "medium": Size(3, 1500, 2000, 32, (12, 16, 24, 32), (1, 2, 4, 8), Recipe(4, 5e-3, 50)),
    "full": Size(
        3, None, None, 32, (64, 128, 256, 384), (1, 2, 4, 8), Recipe(300, 2e-3, 128, augment=True)
    ),
}
#: what the factor of a block starts at; None for no factor
SCALES = {"from 0": 0.0, "from 1": 1.0, "none": None}


def cells(size: str) -> list[dict]:
    steps = SIZES[size].steps
    middle = 4 if 4 in steps else steps[-1]
    chosen = [(num_steps, "from 0") for num_steps in steps]
    chosen += [(middle, scale) for scale in SCALES if scale != "from 0"]
    return [
        {"steps": num_steps, "scale": scale, "seed": seed}
        for seed in range(SIZES[size].seeds)
        for num_steps, scale in chosen
    ]


class Sequence(nn.Module):
    """The logits of every step, in evaluation too."""

    def __init__(self, net: TRevSNN):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.step_logits(x)


def measure(cell: dict, context: Context) -> dict:
    size = SIZES[context.size]
    train, test = load(context, size.side, size.train, size.test)
    torch.manual_seed(cell["seed"])
    net = TRevSNN(size.channels, 10, cell["steps"], in_channels=train.x.shape[1])
    start = SCALES[cell["scale"]]
    for block in (m for m in net.modules() if isinstance(m, SpikingBlock)):
        if start is None:
            block.gamma = None
        else:
            nn.init.constant_(block.gamma, start)
    net = Sequence(net)
    fit(net, train, tet_s_cross_entropy, size.recipe, seed=cell["seed"], device=context.device)
    return {
        "accuracy": accuracy(net, test),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }


def table(rows: list[dict]) -> str:
    """Accuracies; the last step has a classifier of another kind than those before it."""
    lines = []
    for key in dict.fromkeys(_key(row) for row in rows):
        each = [row["figures"] for row in rows if _key(row) == key]
        steps = list(zip(*(figures["accuracy"] for figures in each), strict=True))
        before = [percent(list(step)) for step in steps[:-1]]
        columns = (before[0], before[-1]) if before else ("", "")
        parameters = f"{each[0]['parameters']:,}"
        lines.append([*key, len(each), parameters, *columns, percent(list(steps[-1]))])
    header = ["T", "scale", "seeds", "parameters", "after step 1", "after step T - 1"]
    return "\n\n".join(
        [
            "Test accuracy in percent, mean ± standard error over seeds:",
            markdown([*header, "after step T"], lines),
        ]
    )


def _key(row: dict) -> tuple[int, str]:
    return row["cell"]["steps"], row["cell"]["scale"]
