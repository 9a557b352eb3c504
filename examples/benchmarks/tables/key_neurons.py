"""Cosine similarity over training of the full gradient with gradients cut in time."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass

import torch
from benchmarks.framework.record import Context, legend_below, markdown
from benchmarks.lib.images import load
from benchmarks.lib.train import in_units
from key_neurons import COLUMNS, SpikingResNet, follow
from torch.utils.data import DataLoader, TensorDataset

TITLE = "Key neurons: similarity with the full gradient over training"


@dataclass(frozen=True)
class Size:
    seeds: int
    train: int | None
    side: int
    width: int
    blocks: int
    num_steps: int
    epochs: int
    every: int
    draws: int
    batch: int


SIZES = {
    "short": Size(1, 160, 8, 4, 1, 2, 1, 2, 1, 32),
    "medium": Size(3, 2048, 16, 8, 2, 4, 4, 21, 2, 64),
    "full": Size(3, None, 32, 64, 2, 4, 100, 782, 3, 128),
}


def cells(size: str) -> list[dict]:
    return [{"seed": seed} for seed in range(SIZES[size].seeds)]


def measure(cell: dict, context: Context) -> dict:
    size = SIZES[context.size]
    data, _ = load(context, size.side, size.train, 10)
    torch.manual_seed(cell["seed"])
    random.seed(cell["seed"])  # draws the other neurons
    network = SpikingResNet(data.x.shape[1], 10, size.width, size.blocks, size.side)
    order = torch.Generator().manual_seed(cell["seed"])
    loader = DataLoader(
        TensorDataset(*data), size.batch, shuffle=True, drop_last=True, generator=order
    )
    rows = follow(
        network.to(context.device),
        loader,
        size.epochs,
        size.every,
        size.num_steps,
        size.draws,
        context.device,
    )
    steps, accuracies, similarities = zip(*rows, strict=True)
    return {
        "steps": steps,
        "accuracy": accuracies,
        "similarities": [list(column) for column in zip(*similarities, strict=True)],
    }


def table(rows: list[dict]) -> str:
    def line(name, column):
        each = [row["figures"]["similarities"][column] for row in rows]
        first = statistics.fmean(values[0] for values in each)
        last = statistics.fmean(values[-1] for values in each)
        mean = in_units([statistics.fmean(values) for values in each], ".3f")
        least = min(min(values) for values in each)
        return [f"temporal gradient {name}", first, last, mean, least]

    accuracy = statistics.fmean(row["figures"]["accuracy"][-1] for row in rows)
    steps = rows[0]["figures"]["steps"]
    return "\n\n".join(
        [
            f"Cosine similarity with the full gradient, {len(rows)} seeds, measured {len(steps)} "
            f"times in {steps[-1]} optimiser steps; training accuracy at the end "
            f"{100 * accuracy:.1f}%:",
            markdown(
                ["", "at the start", "at the end", "mean over training", "least of all"],
                [line(name, column) for column, name in enumerate(COLUMNS)],
            ),
        ]
    )


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    steps = rows[0]["figures"]["steps"]
    for column, name in enumerate(COLUMNS):
        each = torch.tensor([row["figures"]["similarities"][column] for row in rows])
        axes.plot(steps, each.mean(0), marker="o", label=f"temporal gradient {name}")
        axes.fill_between(steps, each.amin(0), each.amax(0), alpha=0.2)
    axes.set(xlabel="optimiser step", ylabel="cosine similarity with the full gradient")
    legend_below(figure, axes)
    return figure
