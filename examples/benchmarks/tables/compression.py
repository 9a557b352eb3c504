"""Accuracy against kept weights and against synaptic operations, by seven methods.

Every method starts from the same dense network of a seed and trains for the same number of steps
after it, with the same rates. The first layer, which reads real values, stays dense and counts.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from benchmarks.framework.record import Context, legend_below, markdown
from benchmarks.lib.images import load
from benchmarks.lib.networks import Zoo, vgg
from benchmarks.lib.train import (
    Recipe,
    accuracy,
    fit,
    mean_and_error,
    mean_cross_entropy,
    operations,
    percent,
)
from spikingjelly.activation_based import functional

from sj_ext.pruning import (
    GlobalMagnitudePruner,
    IterativeMagnitudePruner,
    LayerMagnitudePruner,
    MinimaxPruner,
    Schedule,
    compress_then_finetune,
)

TITLE = "Compression: accuracy against kept weights and synaptic operations"


@dataclass(frozen=True)
class Size:
    seeds: int
    kept: tuple[float, ...]
    train: int | None
    test: int | None
    side: int
    num_steps: int
    dense: Recipe
    pruned: Recipe


SIZES = {
    "short": Size(1, (0.1,), 512, 250, 8, 2, Recipe(3, 5e-3, 32), Recipe(2, 4e-3, 32)),
    "medium": Size(
        3,
        (0.25, 0.1, 0.05, 0.02, 0.01),
        3000,
        2000,
        16,
        2,
        Recipe(12, 3e-3, 32, augment=True),
        Recipe(4, 3e-3, 32, augment=True),
    ),
    "full": Size(
        3,
        (0.25, 0.1, 0.05, 0.02, 0.01),
        None,
        None,
        32,
        4,
        Recipe(60, 2e-3, 128, augment=True),
        Recipe(60, 1e-3, 128, augment=True),
    ),
}


def _minimax(net, optimizer, steps, kept, layerwise):
    return MinimaxPruner(net, budget=kept, schedule=steps, optimizer=optimizer, layerwise=layerwise)


def _sequential(net, optimizer, steps, kept, layerwise):
    return compress_then_finetune(
        net,
        budget=kept,
        compress_steps=steps // 2,
        finetune_steps=steps - steps // 2,
        optimizer=optimizer,
        layerwise=layerwise,
    )


def _magnitude(net, optimizer, steps, kept, pruner):
    return pruner(net, budget=kept, schedule=steps, optimizer=optimizer)


def _iterative(net, optimizer, steps, kept):
    schedule = Schedule.geometric(kept, steps)
    return IterativeMagnitudePruner(net, budget=kept, schedule=schedule, optimizer=optimizer)


METHODS = {
    "minimax, global, joint": functools.partial(_minimax, layerwise=False),
    "minimax, layer-wise, joint": functools.partial(_minimax, layerwise=True),
    "minimax, global, then fine-tune": functools.partial(_sequential, layerwise=False),
    "minimax, layer-wise, then fine-tune": functools.partial(_sequential, layerwise=True),
    "magnitude, iterative": _iterative,
    "magnitude, global": functools.partial(_magnitude, pruner=GlobalMagnitudePruner),
    "magnitude, layer-wise": functools.partial(_magnitude, pruner=LayerMagnitudePruner),
}


def cells(size: str) -> list[dict]:
    chosen = SIZES[size]
    return [
        {"method": method, "kept": kept, "seed": seed}
        for seed in range(chosen.seeds)
        for kept, method in [
            (1.0, "dense"),
            *((kept, method) for kept in chosen.kept for method in METHODS),
        ]
    ]


@functools.lru_cache(maxsize=1)
def _dense(seed: int, context: Context):
    """The trained dense network of a seed; the same one whenever it is made again."""
    size = SIZES[context.size]
    train, _ = load(context, size.side, size.train, size.test)
    torch.manual_seed(seed)
    if context.size == "full":
        net = Zoo("sew_resnet18", size.num_steps)
    else:
        widths = (8, 16, 32) if context.size == "short" else (12, 48, 96, 96)
        net = vgg(train.x.shape[1], widths, size.num_steps, size.side)
    fit(net, train, mean_cross_entropy, size.dense, seed=seed, device=context.device)
    functional.reset_net(net)
    return net


def measure(cell: dict, context: Context) -> dict:
    size = SIZES[context.size]
    train, test = load(context, size.side, size.train, size.test)
    net = copy.deepcopy(_dense(cell["seed"], context))
    density = 1.0
    if cell["method"] != "dense":
        pruner = fit(
            net,
            train,
            mean_cross_entropy,
            size.pruned,
            seed=1000 + cell["seed"],
            device=context.device,
            make_pruner=functools.partial(METHODS[cell["method"]], kept=cell["kept"]),
        )
        density = pruner.density
        if not pruner.finished or density > cell["kept"]:
            raise RuntimeError(f"{cell}: the budget is not met, {density} of the weights are kept")
    counted = operations(net, test.x[:200].to(context.device))
    return {
        "accuracy": accuracy(net, test, cumulative=True)[-1],
        "density": density,
        "additions": counted.acs / 200,
        "nanojoules": counted.energy() / 200 / 1e3,
    }


def _of(rows: list[dict], method: str, kept: float, name: str) -> list[float]:
    return [
        row["figures"][name]
        for row in rows
        if (row["cell"]["method"], row["cell"]["kept"]) == (method, kept)
    ]


def table(rows: list[dict]) -> str:
    levels = sorted({row["cell"]["kept"] for row in rows}, reverse=True)
    methods = list(dict.fromkeys(row["cell"]["method"] for row in rows))
    dense = mean_and_error(_of(rows, "dense", 1.0, "additions"))[0]
    seeds = len({row["cell"]["seed"] for row in rows})

    def lines(show):
        return [
            [
                method,
                *(
                    show(method, kept) if _of(rows, method, kept, "accuracy") else ""
                    for kept in levels
                ),
            ]
            for method in methods
        ]

    def accuracies(method, kept):
        return percent(_of(rows, method, kept, "accuracy"))

    def additions(method, kept):
        return f"{mean_and_error(_of(rows, method, kept, 'additions'))[0] / dense:.4f}"

    header = ["", *(f"{100 * kept:g}%" for kept in levels)]
    return "\n\n".join(
        [
            f"Test accuracy in percent by kept weights, mean ± standard error of {seeds} seeds:",
            markdown(header, lines(accuracies)),
            "Synaptic operations of the same networks over those of the dense one:",
            markdown(header, lines(additions)),
        ]
    )


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    levels = sorted({row["cell"]["kept"] for row in rows if row["cell"]["kept"] < 1})
    for method in dict.fromkeys(row["cell"]["method"] for row in rows):
        if method == "dense":
            accuracy_of_dense = mean_and_error(_of(rows, method, 1.0, "accuracy"))[0]
            for axes in (left, right):
                axes.axhline(100 * accuracy_of_dense, color="grey", linestyle="--", label=method)
            continue
        there = [kept for kept in levels if _of(rows, method, kept, "accuracy")]
        means, errors = zip(
            *(mean_and_error(_of(rows, method, kept, "accuracy")) for kept in there), strict=True
        )
        additions = [mean_and_error(_of(rows, method, kept, "additions"))[0] for kept in there]
        style = {
            "yerr": [100 * error for error in errors],
            "marker": "o",
            "linestyle": "-" if "minimax" in method else ":",
            "label": method,
        }
        for axes, x in ((left, [100 * kept for kept in there]), (right, additions)):
            axes.errorbar(x, [100 * mean for mean in means], **style)
    left.set(xscale="log", xlabel="weights kept, %", ylabel="test accuracy, %")
    left.set_xticks([100 * kept for kept in levels], [f"{100 * kept:g}" for kept in levels])
    left.minorticks_off()
    right.set(xscale="log", xlabel="synaptic operations per image")
    legend_below(figure, left)
    return figure
