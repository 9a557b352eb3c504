"""A small one of every spiking transformer, trained on images: examples/configs/transformers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import train_transformer
from benchmarks.framework.record import Context, markdown

TITLE = "Spiking transformers: a small one of each method, trained"


@dataclass(frozen=True)
class Size:
    train: int | None
    test: int | None
    epochs: int
    #: configurations; None for all
    names: tuple[str, ...] | None = None


SIZES = {
    "short": Size(96, 64, 1, ("sts", "spikformer_v2")),
    "medium": Size(2000, 1000, 5),
    "full": Size(None, None, 100),
}


def cells(size: str) -> list[dict]:
    names = SIZES[size].names
    found = sorted(path.stem for path in train_transformer.CONFIGS.glob("*.json"))
    return [{"model": name} for name in found if names is None or name in names]


def measure(cell: dict, context: Context) -> dict:
    size, name = SIZES[context.size], cell["model"]
    config = train_transformer.read(train_transformer.CONFIGS / f"{name}.json", epochs=size.epochs)
    train_set = train_transformer.images(context.data_dir, True, size.train)
    test_set = train_transformer.images(context.data_dir, False, size.test)
    torch.manual_seed(0)
    start = time.process_time()  # others may be at work too
    figures = train_transformer.run(name, config, train_set, test_set, context.device)
    return figures | {
        "pixels": config["recipe"]["pixels"],
        "T": config["arguments"]["T"],
        "seconds": time.process_time() - start,
    }


def table(rows: list[dict]) -> str:
    header = [
        "network",
        "pixels",
        "T",
        "parameters",
        "test accuracy, %",
        "mean rate",
        "additions, M",
        "multiplications, M",
        "held, MiB",
        "compact, MiB",
        "processor, s",
    ]
    return markdown(header, [_line(row) for row in rows])


def _line(row: dict) -> list[str]:
    figures = row["figures"]
    return [
        row["cell"]["model"],
        str(figures["pixels"]),
        str(figures["T"]),
        f"{figures['parameters']:,}",
        f"{100 * figures['accuracy']:.1f}",
        f"{figures['rate']:.3f}",
        f"{figures['acs'] / 1e6:.2f}",
        f"{figures['macs'] / 1e6:.2f}",
        f"{figures['held'] / 2**20:.1f}",
        f"{figures['held_compact'] / 2**20:.1f}",
        f"{figures['seconds']:.0f}",
    ]
