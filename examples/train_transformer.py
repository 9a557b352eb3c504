"""Train spiking transformers on CIFAR-10, one after the other.

    python examples/train_transformer.py examples/configs/transformers/*.json \\
        --data-dir CIFAR --output runs/transformers
    python examples/train_transformer.py --short

A configuration is a JSON file: ``model`` names a constructor of ``sj_ext.model.transformer``,
``arguments`` are its sizes, ``recipe`` is how it is trained (``RECIPE`` has what that may say, and
what holds by default). The data folder holds torchvision's copy of CIFAR-10 or a packed one. Each
run leaves ``OUTPUT/NAME.json``; ``python examples/benchmarks transformers`` makes a table of them
all.

The recipe is all that is applied: AdamW without decay of biases and norms, a warm-up and a cosine,
flips and shifts of the images, gradients clipped, the cross-entropy of the mean over the steps, or
of every step (``"loss": "tet"``). With ``"program"`` it is that of a paper's program, in what its
flags really do (``transformer_recipe.py``, which needs timm): ``examples/configs/transformers/
published`` has those that are published for CIFAR-10, for a GPU.

``--short`` trains two small networks for a moment on scikit-learn's digits, without a data folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from command_line import (
    DATA,
    Command,
    cifar10_folder,
    count,
    device,
    existing_file,
    new_folder,
    whole,
)
from data import cifar10, digits
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, pad
from tqdm import tqdm

import sj_ext
from sj_ext import host
from sj_ext.analysis import activation_memory, synaptic_operations
from sj_ext.functional import tet_cross_entropy
from sj_ext.memory import compact
from sj_ext.model import transformer
from sj_ext.observe import at_rest, watching

CONFIGS = Path(__file__).parent / "configs" / "transformers"
RECIPE = {
    #: height and width to which the images are averaged down
    "pixels": 32,
    "epochs": 3,
    "batch_size": 25,
    "lr": 2e-3,
    "weight_decay": 0.01,
    #: share of the steps in which the rate rises
    "warmup": 0.1,
    #: largest norm of the gradient; None for any
    "clip": 1.0,
    #: "mean" over the steps, or "tet": of every step
    "loss": "mean",
    #: flags of a program, see transformer_recipe.py; in place of warm-up, flips, shifts and loss
    "program": None,
    #: deviations of the images' channels
    "std": (0.2470, 0.2435, 0.2616),
}
MEAN = (0.4914, 0.4822, 0.4465)
Data = tuple[torch.Tensor, torch.Tensor]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse(argv)
    if options.short:
        names = ("spikingformer", "spiking_resformer")
        options.configs = options.configs or [CONFIGS / f"{name}.json" for name in names]
    elif not options.configs or options.data_dir is None:
        parser.error("configs and --data-dir are needed, or --short")
    elif not options.download:
        try:
            cifar10_folder(str(options.data_dir))
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --data-dir: {error} (or --download)")
    return options


def make_parser() -> Command:
    short = {"epochs": 1, "limit": 192, "test_limit": 64, "output": Path("runs/short")}
    parser = Command(__doc__, short=short)
    add = parser.add_argument
    add("configs", type=existing_file, nargs="*", help="files of examples/configs/transformers")
    add("--data-dir", type=new_folder, help=f"{DATA}; --short without it: digits")
    add("--download", action="store_true", help="let torchvision fetch its copy")
    add("--output", type=new_folder, default="runs/transformers", help="folder of the records")
    add("--limit", type=count, help="train on so many images only")
    add("--test-limit", type=count, help="test on so many images only")
    add("--epochs", type=count, help="instead of the recipe's")
    add("--device", type=device, default="cpu", help="of PyTorch")
    add("--seed", type=whole, default=0, help="of weights and order")
    return parser


def images(
    folder: Path | None, train: bool, limit: int | None = None, download: bool = False
) -> Data:
    """Images ``[N, 3, 32, 32]`` as bytes and labels, of digits where there is no folder."""
    if folder is None:
        x, y = digits(32)[0 if train else 1][:limit]
        return (255 * x).byte().expand(-1, 3, -1, -1), y
    return cifar10(folder, train, limit, download)


def normalised(pixels: torch.Tensor, recipe: dict[str, Any]) -> torch.Tensor:
    """Images from bytes, averaged down to the recipe's size."""
    mean, std = (torch.tensor(z).view(1, 3, 1, 1) for z in (MEAN, recipe["std"]))
    x, side = (pixels / 255 - mean) / std, recipe["pixels"]
    return x if x.shape[-1] == side else adaptive_avg_pool2d(x, side)


def read(path: Path, **changes: Any) -> dict[str, Any]:
    """A configuration with its whole recipe."""
    config = json.loads(path.read_text("utf-8"))
    recipe = RECIPE | config.get("recipe", {}) | changes
    unknown = sorted(set(recipe) - set(RECIPE))
    if unknown:
        raise ValueError(f"{path.name}: recipe has {unknown[0]!r}, which is none of {list(RECIPE)}")
    return config | {"recipe": recipe}


def build(config: dict[str, Any]) -> torch.nn.Module:
    make = reduce(getattr, config["model"].split("."), transformer)
    return make(**config["arguments"])


def augmented(x: torch.Tensor) -> torch.Tensor:
    """Each image mirrored or not, the batch shifted by up to an eighth of the side."""
    mirrored = torch.where((torch.rand(len(x)) < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)
    reach = x.shape[-1] // 8
    i, j = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    return pad(mirrored, 4 * (reach,))[..., i : i + x.shape[-2], j : j + x.shape[-1]]


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Share of the full learning rate: linear up, then half a cosine down."""
    begin = max(1, round(warmup * steps))
    if step < begin:
        return (step + 1) / begin
    return 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, steps - begin)))


class OwnRecipe:
    """Batches, targets and learning rates of a recipe without a program."""

    def __init__(self, recipe: dict[str, Any], optimizer: torch.optim.Optimizer, per_epoch: int):
        self.recipe, self.epochs = recipe, recipe["epochs"]
        rate = partial(rate_at, steps=self.epochs * per_epoch, warmup=recipe["warmup"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def begin(self, epoch: int) -> None:
        """Nothing changes with an epoch."""

    def batch(self, pixels: torch.Tensor, y: torch.Tensor) -> Data:
        return augmented(normalised(pixels, self.recipe)), y

    def loss(self, y_seq: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.recipe["loss"] == "tet":
            return tet_cross_entropy(y_seq, target)
        return cross_entropy(y_seq.mean(0), target)

    def stepped(self) -> None:
        self.schedule.step()


def way_of(recipe: dict[str, Any], optimizer: torch.optim.Optimizer, per_epoch: int) -> Any:
    if recipe["program"] is None:
        return OwnRecipe(recipe, optimizer, per_epoch)
    from transformer_recipe import ProgramRecipe  # needs timm

    return ProgramRecipe(recipe, optimizer, MEAN)


def train(net: torch.nn.Module, recipe: dict[str, Any], data: Data, title: str) -> None:
    """Raises a RuntimeError where a gradient is not finite."""
    pixels, y = data
    place, size = next(net.parameters()).device, recipe["batch_size"]
    groups = sj_ext.parameter_groups(net, recipe["weight_decay"], recipe["lr"])
    optimizer = torch.optim.AdamW(groups)
    per_epoch = len(pixels) // size
    way = way_of(recipe, optimizer, per_epoch)
    net.train()
    bar = tqdm(range(way.epochs * per_epoch), title, leave=False, disable=None)
    for step in bar:
        if step % per_epoch == 0:
            way.begin(step // per_epoch)
            order = torch.randperm(len(pixels))
        batch = order[step % per_epoch * size :][:size]
        x, target = way.batch(pixels[batch], y[batch])
        optimizer.zero_grad()
        loss = way.loss(net(x.to(place)), target.to(place))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), recipe["clip"] or math.inf)
        if not bool(norm.isfinite()):
            raise RuntimeError(f"{title}: the gradient of step {step} is not finite")
        optimizer.step()
        way.stepped()
        host.functional.reset_net(net)
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")


@torch.no_grad()
def accuracy(net: torch.nn.Module, data: Data) -> float:
    net.eval()
    place, right = next(net.parameters()).device, 0
    for x, y in zip(*(z.split(250) for z in data), strict=True):
        right += int((net(x.to(place)).mean(0).argmax(-1) == y.to(place)).sum())
        host.functional.reset_net(net)
    return right / len(data[1])


def measured(net: torch.nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Mean rate of the neurons and operations of an image; bytes that training on ``x`` holds."""
    rates: list[float] = []
    neurons = [(0, m) for m in net.modules() if isinstance(m, host.neuron.BaseNode)]
    sample = x[:8]
    with at_rest(net), watching(neurons, lambda key, m, a, s: rates.append(float(s.mean()))):
        net(sample)
    count = synaptic_operations(net.eval(), sample, samples=len(sample))
    held = {}
    for name, network in (("held", net), ("held_compact", compact(net, sample[:2]))):
        network.train()
        _, memory = activation_memory(partial(network, x))
        host.functional.reset_net(net)
        held[name] = memory.saved
    return {
        "rate": sum(rates) / len(rates),
        "acs": count.acs / len(sample),
        "macs": count.macs / len(sample),
        **held,
    }


def run(
    title: str, config: dict[str, Any], train_set: Data, test_set: Data, place: str = "cpu"
) -> dict[str, float]:
    """Build, train and measure one network."""
    recipe = config["recipe"]
    net = build(config).to(place)
    train(net, recipe, train_set, title)
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "accuracy": accuracy(net, (normalised(test_set[0], recipe), test_set[1])),
        **measured(net, normalised(train_set[0][: recipe["batch_size"]], recipe).to(place)),
    }


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    options = parse(argv)
    train_set = images(options.data_dir, True, options.limit, options.download)
    test_set = images(options.data_dir, False, options.test_limit, options.download)
    changes = {} if options.epochs is None else {"epochs": options.epochs}
    options.output.mkdir(parents=True, exist_ok=True)
    records = []
    for path in options.configs:
        config = read(path, **changes)
        torch.manual_seed(options.seed)
        start = time.perf_counter()
        figures = run(path.stem, config, train_set, test_set, options.device)
        seconds = time.perf_counter() - start
        record = {**config, "images": len(train_set[0]), "seconds": seconds, **figures}
        (options.output / f"{path.stem}.json").write_text(json.dumps(record, indent=1), "utf-8")
        print(
            f"{path.stem}: {figures['parameters']:,} parameters, accuracy "
            f"{figures['accuracy']:.1%}, rate {figures['rate']:.3f}, {figures['acs'] / 1e6:.1f} M "
            f"additions and {figures['macs'] / 1e6:.1f} M multiplications an image, "
            f"{figures['held'] / 2**20:.0f} MiB held ({figures['held_compact'] / 2**20:.0f} MiB "
            f"compact), {seconds:.0f} s",
            flush=True,
        )
        records.append(record)
    return records


if __name__ == "__main__":
    main()
