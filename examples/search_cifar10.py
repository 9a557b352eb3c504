"""Search an architecture on CIFAR-10 under a limit of synaptic operations, and retrain it.

A small AutoSNN supernet is trained one path at a time. Evolution looks for the path with the
highest accuracy on held-out training images among those whose synaptic operations stay below a
limit. The winner is then trained from scratch beside a random architecture of about the same cost.

    python examples/search_cifar10.py --data-dir CIFAR10
    python examples/search_cifar10.py --short                 # scikit-learn's digits, a minute
    python examples/search_cifar10.py --data-dir CIFAR10 --seeds 3 --output runs/search

Source of space and evolution: Na et al., "AutoSNN", ICML 2022 (arXiv 2201.12738).
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from command_line import DATA, Command, cifar10_folder, count, new_folder, positive, whole
from data import cifar10, digits
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from sj_ext import __version__, host, search
from sj_ext.functional import sdt_cross_entropy
from sj_ext.search.network.autosnn import Sizes, child, supernet

#: slots: whether each is a pooling
POOLED = (False, True, False, False, True, False)

Split = tuple[torch.Tensor, torch.Tensor]


# ---- data ----------------------------------------------------------------------------------------


def load(arguments: argparse.Namespace) -> tuple[Split, Split, Split]:
    """Images to train with, to choose by, and to test on, standardised, and their labels."""
    if arguments.data_dir is None:
        (x, y), (x_test, y_test) = (split.tensors for split in digits(arguments.size))
        x, x_test = x.expand(-1, 3, -1, -1), x_test.expand(-1, 3, -1, -1)
    else:
        (x, y), (x_test, y_test) = (
            cifar10(arguments.data_dir, train, limit, download=True)
            for train, limit in ((True, arguments.images), (False, arguments.test_images))
        )
        x, x_test = (F.adaptive_avg_pool2d(p.float() / 255, arguments.size) for p in (x, x_test))
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = len(x) * 4 // 5
    parts = [(x[i], y[i]) for i in (order[:cut], order[cut:])]
    return tuple(((a - mean) / std, b) for a, b in (*parts, (x_test, y_test)))


# ---- training ------------------------------------------------------------------------------------


def fit(
    net: nn.Module,
    data: Split,
    epochs: int,
    seed: int,
    arguments: argparse.Namespace,
    before: Callable[[], object] = lambda: None,
    what: str = "training",
) -> None:
    """Train with Adam and a cosine rate; ``before`` runs before every batch."""
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=arguments.lr)
    steps = epochs * (len(x) // arguments.batch_size)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    bar = tqdm(total=steps, desc=what, leave=False, disable=None)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)[
            : len(x) // arguments.batch_size * arguments.batch_size
        ]
        for part in order.split(arguments.batch_size):
            before()
            flipped = torch.rand(len(part), generator=generator) < 0.5
            images = torch.where(flipped[:, None, None, None], x[part].flip(-1), x[part])
            optimizer.zero_grad()
            loss = sdt_cross_entropy(4 * net(images), y[part])
            loss.backward()
            optimizer.step()
            rate.step()
            host.functional.reset_net(net)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    bar.close()


@torch.no_grad()
def accuracy(net: nn.Module, data: Split) -> float:
    """Share of images whose class has the highest output, summed over the steps."""
    net.eval()
    right = 0
    for x, y in zip(*(t.split(250) for t in data), strict=True):
        right += int((net(x).sum(0).argmax(1) == y).sum())
        host.functional.reset_net(net)
    return right / len(data[1])


# ---- search --------------------------------------------------------------------------------------


def run(seed: int, splits, space, sizes, arguments) -> dict:
    """One seed: supernet, search, and two networks of about the same cost trained from scratch."""
    train, choose, test = splits
    torch.manual_seed(seed)
    rng = random.Random(seed)
    net = supernet(POOLED, sizes)
    sample = choose[0][:64]
    fit(
        net,
        train,
        arguments.epochs,
        seed,
        arguments,
        lambda: net.sample_path(space, rng),
        "supernet",
    )
    costs: dict = {}

    def ready(architecture) -> None:
        """Statistics of all paths mixed are wrong for each: rates would be far off, and costs."""
        net.activate(space, architecture)
        net.recalibrate(train[0][:512].split(128))

    def synops(architecture) -> float:
        if architecture not in costs:
            ready(architecture)
            costs[architecture] = search.cost.synops(net, sample)
        return costs[architecture]

    def value(architecture) -> float:
        ready(architecture)
        return accuracy(net, choose)

    draws = [synops(space.sample(rng)) for _ in range(20)]
    limit = arguments.limit or sorted(draws)[len(draws) // 2]
    bar = tqdm(
        total=arguments.generations * arguments.pool, desc="search", leave=False, disable=None
    )

    def watched(architecture) -> float:
        bar.update()
        return value(architecture)

    found = search.evolution_as_published(
        space,
        watched,
        seed=seed,
        generations=arguments.generations,
        pool=arguments.pool,
        parents=max(2, arguments.pool // 2),
        mutants=arguments.pool // 2,
        children=arguments.pool // 2,
        constraints=[search.Constraint(synops, limit, "synaptic operations")],
        record=arguments.output / f"search-{seed}.json" if arguments.output else None,
    )
    bar.close()
    rival = alike(space, rng, synops, synops(found.best), found.best)
    row = {"seed": seed, "limit": limit, "history": [[v, synops(a)] for a, v in found.history]}
    for name, architecture in (("found", found.best), ("random", rival)):
        torch.manual_seed(seed)
        built = child(architecture, sizes)
        fit(built, train, arguments.retrain, seed, arguments, what=f"retraining the {name} one")
        row[name] = {
            "genes": [gene for gene in architecture if gene != "pool"],
            "supernet": value(architecture),
            "supernet_synops": synops(architecture),
            "accuracy": accuracy(built, test),
            "synops": search.cost.synops(built, sample),
            "parameters": search.cost.parameters(built),
        }
    return row


def alike(space, rng, synops, wanted: float, found):
    """Of architectures at random, other than the one that was found, the one of nearest cost."""
    draws = {space.sample(rng) for _ in range(30)} - {found}
    return min(sorted(draws, key=str), key=lambda a: abs(synops(a) / wanted - 1))


# ---- what is shown -------------------------------------------------------------------------------


def table(rows: list[dict]) -> str:
    lines = ["seed  network  accuracy  million synops  parameters  blocks"]
    for row in rows:
        for name in ("found", "random"):
            r = row[name]
            lines.append(
                f"{row['seed']:4}  {name:7}  {r['accuracy']:8.3f}  {r['synops'] / 1e6:14.3f}  "
                f"{r['parameters']:10,}  {' '.join(r['genes'])}"
            )
    ahead = [row["found"]["accuracy"] - row["random"]["accuracy"] for row in rows]
    verdict = f"found minus random: {', '.join(f'{100 * d:+.1f}' for d in ahead)} points"
    return "\n".join([*lines, verdict])


def markdown(rows: list[dict]) -> str:
    """The table of a page: each seed, then mean and standard deviation over the seeds."""
    lines = [
        "| seed | network | test accuracy, % | million synaptic operations | parameters | blocks |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for name in ("found", "random"):
            r = row[name]
            lines.append(
                f"| {row['seed']} | {name} | {100 * r['accuracy']:.1f} | {r['synops'] / 1e6:.2f} | "
                f"{r['parameters']:,} | `{' '.join(r['genes'])}` |"
            )
    for name in ("found", "random") if len(rows) > 1 else ():
        cells = []
        for key, scale in (("accuracy", 100), ("synops", 1e-6)):
            values = [scale * row[name][key] for row in rows]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        lines.append(f"| mean ± deviation | {name} | {cells[0]} | {cells[1]} | | |")
    if len(rows) > 1:
        ahead = [100 * (row["found"]["accuracy"] - row["random"]["accuracy"]) for row in rows]
        told = f"{statistics.mean(ahead):+.1f} ± {statistics.stdev(ahead):.1f}"
        lines.append(f"| mean ± deviation | found minus random | {told} | | | |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for row in rows:
        values, operations = zip(*row["history"], strict=True)
        points = axes.scatter(
            [o / 1e6 for o in operations],
            values,
            s=12,
            alpha=0.6,
            label=f"seed {row['seed']}, paths",
        )
        for name, marker in (("found", "*"), ("random", "X")):
            r = row[name]
            axes.scatter(
                r["synops"] / 1e6, r["accuracy"], s=80, marker=marker, color=points.get_facecolor()
            )
        axes.axvline(row["limit"] / 1e6, color="grey", linewidth=0.8)
    for name, marker in (("found, retrained", "*"), ("random, retrained", "X")):
        axes.scatter([], [], s=80, marker=marker, color="grey", label=name)
    axes.set_xlabel("million synaptic operations an image")
    axes.set_ylabel("accuracy: of a path in the supernet, of a network on test images")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130, bbox_inches="tight", transparent=True)
    pyplot.close(figure)


SHORT = {
    "size": 8,
    "width": 4,
    "num_steps": 2,
    "epochs": 1,
    "retrain": 1,
    "generations": 2,
    "pool": 4,
}


def make_parser() -> Command:
    parser = Command(__doc__, short=SHORT)
    add = parser.add_argument
    add("--data-dir", type=cifar10_folder, help=f"{DATA}; without it, scikit-learn's digits")
    add("--output", type=new_folder, help="folder for the record; a stopped run goes on with it")
    add("--images", type=count, default=6000, help="training images, a fifth of them to choose by")
    add("--test-images", type=count, default=2000, help="images of the test set")
    add("--size", type=count, default=12, help="pixels that the images are averaged down to")
    add("--width", type=count, default=8, help="channels of the first stage")
    add("--num-steps", type=count, default=4, help="T")
    add("--epochs", type=count, default=20, help="of the supernet")
    add("--retrain", type=count, default=8, help="epochs of each network from scratch")
    add("--generations", type=whole, default=4, help="of evolution")
    add("--pool", type=count, default=10, help="architectures in a generation")
    add("--limit", type=positive, help="synaptic operations an image; else the median of random")
    add("--batch-size", type=count, default=64, help="images of an update")
    add("--lr", type=positive, default=3e-3, help="highest learning rate")
    add("--seed", type=whole, default=0, help="the first one")
    add("--seeds", type=count, default=1, help="how many runs")
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    arguments = parser.parse(argv)
    if arguments.size % 4:
        parser.error(f"--size must be a multiple of 4, got {arguments.size}")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    splits = load(arguments)
    width = arguments.width
    sizes = Sizes(
        channels=(width, width, 2 * width, 2 * width, 2 * width, 4 * width),
        strides=(1, 2, 1, 1, 2, 1),
        stem=width,
        image_size=arguments.size,
        T=arguments.num_steps,
    )
    space = search.autosnn(slots=POOLED)
    print(f"{len(splits[0][1])} images to train, {len(splits[1][1])} to choose, {space.size} ways")
    rows = finished(arguments)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        if any(row["seed"] == seed for row in rows):
            continue
        start = time.perf_counter()
        rows.append(run(seed, splits, space, sizes, arguments))
        rows[-1]["seconds"] = round(time.perf_counter() - start)
        print(table(rows[-1:]), flush=True)
        keep(rows, arguments)
    if len(rows) > 1:
        print(table(rows))


# ---- what is kept --------------------------------------------------------------------------------


def settings(arguments: argparse.Namespace) -> dict:
    """What all seeds of a record have in common."""
    own = {k: v for k, v in vars(arguments).items() if isinstance(v, int | float)}
    data = "digits" if arguments.data_dir is None else "CIFAR-10"
    return {k: v for k, v in own.items() if k not in ("seed", "seeds")} | {"data": data}


def finished(arguments: argparse.Namespace) -> list[dict]:
    """The seeds of a run that was stopped."""
    path = arguments.output / "search.json" if arguments.output else None
    if path is None or not path.exists():
        return []
    record = json.loads(path.read_text("utf-8"))
    if record["settings"] != settings(arguments):
        raise SystemExit(f"{path} was made with other settings: choose another --output")
    return record["rows"]


def keep(rows: list[dict], arguments: argparse.Namespace) -> None:
    """Record, table and plot of the seeds so far."""
    if not arguments.output:
        return
    record = {
        "settings": settings(arguments),
        "versions": {
            "torch": torch.__version__,
            "spikingjelly": host.VERSION,
            "sj_ext": __version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
    }
    text = json.dumps(record, indent=1) + "\n"
    (arguments.output / "search.json").write_text(text, encoding="utf-8")
    (arguments.output / "search.md").write_text(markdown(rows) + "\n", encoding="utf-8")
    plot(rows, arguments.output / "search.png")


if __name__ == "__main__":
    main()
