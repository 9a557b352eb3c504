"""Learned initial potentials under three losses: a SEW-ResNet on static images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from benchmarks.framework.record import Context, legend_below, markdown
from benchmarks.lib.images import load
from benchmarks.lib.networks import integrate_and_fire, lif, sew_resnet
from benchmarks.lib.train import Recipe, accuracy, fit, percent
from spikingjelly.activation_based import functional, neuron

import sj_ext

TITLE = "Initial potentials: IF and LIF with and without them under SDT, TET and LTS"

LOSSES = {
    "SDT": functional.sdt_cross_entropy,
    "TET": functional.tet_cross_entropy,
    "LTS": functional.lts_cross_entropy,
}
NEURONS = {"IF": integrate_and_fire, "LIF": lif}
IMP = {neuron.IFNode: neuron.IMPIFNode, neuron.LIFNode: neuron.IMPLIFNode}


@dataclass(frozen=True)
class Size:
    seeds: int
    train: int | None
    test: int | None
    side: int
    widths: tuple[int, ...]
    blocks: int
    num_steps: int
    recipe: Recipe
    #: epochs for which IF neurons are trained once more, to see what the order of losses depends on
    longer: int = 0


SIZES = {
    "short": Size(1, 320, 150, 8, (4, 8), 1, 3, Recipe(3, 1e-2, 32)),
    "medium": Size(3, 2000, 2000, 16, (8, 16, 32), 1, 4, Recipe(5, 5e-3, 50), longer=15),
    "full": Size(
        3, None, None, 32, (64, 128, 256, 512), 2, 4, Recipe(200, 2e-3, 128, augment=True)
    ),
}


def cells(size: str) -> list[dict]:
    chosen = SIZES[size]
    made = [
        {"neuron": name, "imp": imp, "loss": loss, "seed": seed}
        for seed in range(chosen.seeds)
        for name in NEURONS
        for loss in LOSSES
        for imp in (False, True)
    ]
    if chosen.longer:
        made += [cell | {"epochs": chosen.longer} for cell in made if cell["neuron"] == "IF"]
    return made


def measure(cell: dict, context: Context) -> dict:
    size = SIZES[context.size]
    train, test = load(context, size.side, size.train, size.test)
    torch.manual_seed(cell["seed"])
    net = sew_resnet(
        train.x.shape[1], size.widths, size.num_steps, NEURONS[cell["neuron"]], size.blocks
    )
    if cell["imp"]:
        sj_ext.swap_neurons(net, IMP, imp_shape="neuron")
    recipe = dataclasses.replace(size.recipe, epochs=cell.get("epochs", size.recipe.epochs))
    fit(net, train, LOSSES[cell["loss"]], recipe, seed=cell["seed"], device=context.device)
    # what the network answers when it is stopped after a step, as its loss defines the answer
    return {"accuracy": accuracy(net, test, cumulative=cell["loss"] != "LTS")}


def table(rows: list[dict]) -> str:
    steps = _steps(rows)
    lines = []
    for key in dict.fromkeys(_key(row) for row in rows):
        each = [row["figures"]["accuracy"] for row in rows if _key(row) == key]
        lines.append([*key, len(each), *(percent(list(step)) for step in zip(*each, strict=True))])
    return "\n\n".join(
        [
            "Test accuracy in percent when stopped after step t, mean ± standard error over seeds "
            "(SDT and TET answer with the mean output so far, LTS with the last):",
            markdown(["loss", "neuron", "seeds", *(f"t = {t + 1}" for t in range(steps))], lines),
            "Difference that the learned initial potential makes, seed by seed, in points:",
            markdown(
                ["loss", "neuron", *(f"t = {t + 1}" for t in range(steps))], _differences(rows)
            ),
        ]
    )


def _steps(rows: list[dict]) -> int:
    return len(rows[0]["figures"]["accuracy"])


def _key(row: dict) -> tuple[str, str]:
    cell = row["cell"]
    longer = f", {cell['epochs']} epochs" if "epochs" in cell else ""
    return cell["loss"], ("IMP-" if cell["imp"] else "") + cell["neuron"] + longer


def _differences(rows: list[dict]) -> list[list]:
    found = {(_key(row), row["cell"]["seed"]): row["figures"]["accuracy"] for row in rows}
    pairs: dict[tuple, list] = {}
    for ((loss, name), seed), with_it in found.items():
        without = found.get(((loss, name.removeprefix("IMP-")), seed))
        if name.startswith("IMP-") and without:
            gained = [a - b for a, b in zip(with_it, without, strict=True)]
            pairs.setdefault((loss, name), []).append(gained)
    lines = []
    for key, each in pairs.items():
        lines.append([*key, *(percent(list(step), "+") for step in zip(*each, strict=True))])
    return lines


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panels = figure.subplots(1, len(NEURONS), sharey=True)
    for axes, name in zip(panels, NEURONS, strict=True):
        for color, loss in enumerate(LOSSES):
            for imp in (False, True):
                key = loss, ("IMP-" if imp else "") + name
                each = [row["figures"]["accuracy"] for row in rows if _key(row) == key]
                if not each:
                    continue
                mean = 100 * torch.tensor(each).mean(0)
                axes.plot(
                    range(1, len(mean) + 1),
                    mean,
                    color=f"C{color}",
                    linestyle="-" if imp else ":",
                    marker="o",
                    label=f"{loss}, learned V[0]" if imp else loss,
                )
        axes.set(xlabel="stopped after step", title=name, xticks=range(1, 1 + _steps(rows)))
    panels[0].set_ylabel("test accuracy, %")
    legend_below(figure, panels[0], 3)
    return figure
