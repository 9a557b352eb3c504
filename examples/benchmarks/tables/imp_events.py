"""TET and TET-S on simulated events, with and without learned initial potentials.

The events are those of :mod:`event_camera`: images that move along saccades in front of a sensor
with a threshold for the logarithm of the light.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.framework.record import Context, markdown
from benchmarks.lib.images import Images, pixels, scaled
from benchmarks.lib.networks import lif, sew_resnet
from benchmarks.lib.train import Recipe, accuracy, fit, percent
from event_camera import event_frames
from spikingjelly.activation_based import functional, neuron

import sj_ext

TITLE = "Events (simulated): TET and TET-S with and without initial potentials"

LOSSES = {
    "TET, λ = 0": functools.partial(functional.tet_cross_entropy, lamb=0.0),
    "TET, λ = 0.05": functools.partial(functional.tet_cross_entropy, means=1.0, lamb=0.05),
    "TET-S, ε = 0.01": functools.partial(functional.tet_s_cross_entropy, label_smoothing=0.01),
}


@dataclass(frozen=True)
class Size:
    seeds: int
    train: int | None
    test: int | None
    sensor: int
    side: int
    widths: tuple[int, ...]
    blocks: int
    num_steps: int
    recipe: Recipe


SIZES = {
    "short": Size(1, 256, 150, 16, 8, (4, 8), 1, 3, Recipe(3, 1e-2, 32)),
    "medium": Size(3, 2000, 1500, 32, 16, (8, 16, 32), 1, 6, Recipe(5, 5e-3, 50)),
    "full": Size(
        3, None, None, 32, 32, (64, 128, 256, 512), 2, 9, Recipe(100, 2e-3, 128, augment=True)
    ),
}


def cells(size: str) -> list[dict]:
    return [
        {"loss": loss, "imp": imp, "seed": seed}
        for seed in range(SIZES[size].seeds)
        for loss in LOSSES
        for imp in (False, True)
    ]


@functools.lru_cache(maxsize=1)
def _events(data_dir: Path | None, size: Size) -> tuple[Images, Images]:
    """Event frames ``[N, T, 2, side, side]``, events summed over the pixels of a coarser grid."""
    parts = []
    for images in pixels(data_dir, size.train, size.test):
        light, frames = scaled(images, size.sensor).x, []
        for part in light.split(1000):
            sensor = torch.Generator().manual_seed(0)  # the same one for all images
            counts = event_frames(part, size.num_steps, mismatch=0.1, generator=sensor)
            summed = torch.nn.functional.avg_pool2d(
                counts.flatten(0, 1), size.sensor // size.side, divisor_override=1
            )
            frames.append(summed.unflatten(0, counts.shape[:2]).transpose(0, 1))
        parts.append(Images(torch.cat(frames), images.y))
    return tuple(parts)


def measure(cell: dict, context: Context) -> dict:
    size = SIZES[context.size]
    train, test = _events(context.data_dir, size)
    torch.manual_seed(cell["seed"])
    net = sew_resnet(2, size.widths, None, lif, size.blocks)
    if cell["imp"]:
        sj_ext.swap_neurons(net, {neuron.LIFNode: neuron.IMPLIFNode}, imp_shape="neuron")
    fit(net, train, LOSSES[cell["loss"]], size.recipe, seed=cell["seed"], device=context.device)
    return {
        "accuracy": accuracy(net, test, cumulative=True),
        "events": float(test.x.sum((1, 2, 3, 4)).mean()),
    }


def table(rows: list[dict]) -> str:
    steps = len(rows[0]["figures"]["accuracy"])
    lines = []
    for key in dict.fromkeys(_key(row) for row in rows):
        each = [row["figures"]["accuracy"] for row in rows if _key(row) == key]
        lines.append([*key, *(percent(list(step)) for step in zip(*each, strict=True))])
    seeds = len({row["cell"]["seed"] for row in rows})
    return "\n\n".join(
        [
            f"Test accuracy in percent from the mean output up to step t, mean ± standard error of "
            f"{seeds} seeds; {rows[0]['figures']['events']:.0f} simulated events per image:",
            markdown(["loss", "neuron", *(f"t = {t + 1}" for t in range(steps))], lines),
        ]
    )


def _key(row: dict) -> tuple[str, str]:
    return row["cell"]["loss"], "IMP-LIF" if row["cell"]["imp"] else "LIF"
