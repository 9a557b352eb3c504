"""Train a network of SpikingJelly's model zoo on CIFAR-10, then prune it to a budget by minimax.

    python examples/prune_cifar10.py --data-dir DIR --model sew_resnet18 --budget 0.05

DIR holds ``train.npz`` and ``test.npz`` (arrays ``jpeg``: all JPEG files end to end, ``offset``,
``label``), or torchvision's own files, or nothing yet: torchvision then downloads them there.

    python examples/prune_cifar10.py --data-dir DIR --resource energy --budget "20 uJ"

A budget is a share of the dense network, or an amount per image. Whether it can be met is told
before any training, with the plan. The run writes a checkpoint after each epoch (``--checkpoint
FILE``, on by default) and goes on from it if it is there. At the end a table and a picture
(``--picture FILE``) tell what was cut in each layer; the pruned weights are written as sparse
matrices (``--csr FILE``) and the history as CSV (``--history FILE``). ``--short`` runs on
scikit-learn's digits with a narrow network, and keeps no checkpoint unless it is named.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from command_line import DATA, Command, count, device, new_file, new_folder, positive, whole
from data import cifar10
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from stopping import said
from torch import nn
from tqdm import tqdm

from sj_ext.analysis import synaptic_operations
from sj_ext.checkpoint import load_checkpoint, save_checkpoint
from sj_ext.pruning import (
    MinimaxPruner,
    density,
    export_csr,
    make_permanent,
    measure_latency,
)

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
NEURON = {
    "spiking_neuron": neuron.LIFNode,
    "surrogate_function": surrogate.ATan(),
    "detach_reset": True,
}
Split = tuple[torch.Tensor, torch.Tensor]


# ---- data ----------------------------------------------------------------------------------------


def digits() -> tuple[Split, Split]:
    """Scikit-learn's digits as colour images of CIFAR's size."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.images).float().unsqueeze(1) * (255 / 16)
    x = nn.functional.interpolate(x, size=32).expand(-1, 3, -1, -1).to(torch.uint8)
    y = torch.from_numpy(data.target).long()
    return (x[360:], y[360:]), (x[:360], y[:360])


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop of the image with a border of 4, and a random flip."""
    count = len(images)
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(32)
    columns = left[:, None] + torch.arange(32)
    flip = torch.rand(count, generator=generator) < 0.5
    columns[flip] = columns[flip].flip(1)
    index = torch.arange(count)[:, None, None, None]
    channel = torch.arange(3)[None, :, None, None]
    return padded[index, channel, rows[:, None, :, None], columns[:, None, None, :]]


def normalised(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return ((images.float() / 255 - MEAN) / STD).to(device)


# ---- networks ------------------------------------------------------------------------------------


def build(name: str) -> nn.Module:
    if name == "sew_resnet18":
        net = sew_resnet.sew_resnet18(num_classes=10, cnf="ADD", **NEURON)
        # the stem for 32 x 32 images: nothing is thrown away before the first block
        net.conv1 = layer.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif name == "spiking_vgg11_bn":
        net = spiking_vgg.spiking_vgg11_bn(num_classes=10, norm_layer=layer.BatchNorm2d, **NEURON)
    elif name == "narrow":
        features = spiking_vgg.SpikingVGG.make_layers(
            [16, "M", 32, "M", 64, "M", 64, "M"],
            True,
            None,
            NEURON["spiking_neuron"],
            surrogate_function=NEURON["surrogate_function"],
            detach_reset=True,
        )
        net = nn.Sequential(features, layer.Flatten(), layer.Linear(256, 10))
    else:
        raise ValueError(f"unknown model {name!r}")
    functional.set_step_mode(net, "m")
    return net


# ---- training ------------------------------------------------------------------------------------


class Run:
    """A network, its optimizer and the data: everything that an epoch needs."""

    def __init__(self, arguments, net, train: Split, test: Split, device: torch.device):
        self.a, self.net, self.train_data, self.test_data = arguments, net, train, test
        self.device = device

    def loss(self, images, target):
        functional.reset_net(self.net)
        out = self.net(normalised(images, self.device).expand(self.a.num_steps, *images.shape))
        return nn.functional.cross_entropy(out.mean(0), target.to(self.device)), out.mean(0)

    def epoch(self, number: int, title: str, optimizer, rate, pruner=None) -> float:
        """One epoch; its own random numbers, so that a run that was stopped goes on the same."""
        generator = torch.Generator().manual_seed(self.a.seed * 100_003 + number)
        torch.manual_seed(self.a.seed * 100_003 + number)
        images, labels = self.train_data
        order = torch.randperm(len(labels), generator=generator)[: self.batches * self.a.batch_size]
        self.net.train()
        total = 0.0
        bar = tqdm(
            order.split(self.a.batch_size), desc=f"{title} {number}", leave=False, disable=None
        )
        for part in bar:
            loss, _ = self.loss(augmented(images[part], generator), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total += loss.item()
            shown = {"loss": f"{loss.item():.3f}"}
            if pruner is not None:
                pruner.step()
                shown |= {"kept": f"{pruner.density:.4f}", "phase": pruner.phase}
            bar.set_postfix(shown)
        return total / self.batches

    @property
    def batches(self) -> int:
        return len(self.train_data[1]) // self.a.batch_size

    @torch.no_grad()
    def accuracy(self) -> float:
        self.net.eval()
        images, labels = self.test_data
        right = 0
        for x, y in zip(
            images.split(self.a.batch_size), labels.split(self.a.batch_size), strict=True
        ):
            right += int((self.loss(x, y)[1].argmax(1).cpu() == y).sum())
        functional.reset_net(self.net)
        return right / len(labels)

    def operations(self):
        """Synaptic operations of one batch of test images, per image."""
        self.net.eval()
        functional.reset_net(self.net)
        x = normalised(self.test_data[0][: self.a.batch_size], self.device)
        found = synaptic_operations(self.net, x.expand(self.a.num_steps, *x.shape))
        functional.reset_net(self.net)
        return found.acs / len(x), found.energy() / len(x)


def optimisation(net: nn.Module, lr: float, steps: int):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * min(i / max(steps, 1), 1)))
    )
    return optimizer, rate


SHORT = {"model": "narrow", "dense_epochs": 3, "epochs": 4, "num_steps": 2, "lr": 0.1}


def make_parser() -> Command:
    parser = Command(__doc__, short=SHORT)
    add = parser.add_argument
    add("--data-dir", type=new_folder, help=f"{DATA}; is fetched if it is not there")
    models = ["sew_resnet18", "spiking_vgg11_bn", "narrow"]
    add("--model", default="sew_resnet18", choices=models, help="SpikingJelly's, or a small one")
    add("--budget", type=amount, default=0.05, help="0.05, 1000000, '20 uJ', '30 MMAC', '2 ms'")
    resources = ["params", "flops", "synops", "energy", "latency"]
    add("--resource", default="params", choices=resources, help="what the budget is of")
    add("--first", action="store_true", help="prune the first layer too")
    add("--layerwise", action="store_true", help="one s per layer")
    add("--granularity", default="weight", choices=["weight", "channel"], help="what is cut")
    add("--dense-epochs", type=whole, default=60, help="before compression")
    add("--epochs", type=count, default=60, help="of compression and fine-tuning")
    add("--batch-size", type=count, default=64, help="images of an update")
    add("--num-steps", type=count, default=4, help="T")
    add("--lr", type=positive, default=0.05, help="highest learning rate")
    add("--limit", type=count, help="images of each set, for a quick look")
    add("--seed", type=whole, default=0, help="of weights and order")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device, default=there, help="of PyTorch")
    add("--checkpoint", type=new_file, help="default: prune_cifar10.pt, none with --short")
    add("--no-checkpoint", action="store_true", help="save none")
    add("--picture", type=new_file, help="draw what each layer keeps")
    add("--csr", type=new_file, help="write the pruned weights as CSR matrices")
    add("--history", type=new_file, help="write the pruner's history as CSV")
    parser.also("--batch", "--batch-size", count)
    parser.also("--steps", "--num-steps", count)
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    a = parser.parse(argv)
    if not a.short:
        if a.data_dir is None:
            parser.error("--data-dir is needed (or --short)")
        if a.checkpoint is None and not a.no_checkpoint:
            a.checkpoint = Path("prune_cifar10.pt")
    return a


def amount(text: str) -> float | int | str:
    """A share, a whole number above 1, or text with a unit, as the pruner takes it."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        return text
    return int(value) if value > 1 and value.is_integer() else value


def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    with said(lambda: kept(a.checkpoint)):
        train_and_prune(a)


def options(a: argparse.Namespace, net: nn.Module, test: Split, batches: int) -> dict:
    """What the pruner is built with."""
    example = normalised(test[0][:1], torch.device(a.device))
    example = example.expand(a.num_steps, *example.shape)
    table = measure_latency(net, example) if a.resource == "latency" else None
    return {
        "budget": a.budget,
        "resource": a.resource,
        "schedule": a.epochs * batches,
        "layerwise": a.layerwise,
        "granularity": a.granularity,
        "first": a.first,
        "example_input": example,
        "latency_table": table,
    }


def draw(pruner: MinimaxPruner, path: Path) -> None:
    """Weights of each layer before and after."""
    from matplotlib.figure import Figure

    weights = dict(pruner.layer_counts)
    figure = Figure(figsize=(7, 0.3 * len(weights) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(weights), [dense for dense, _ in weights.values()], color="0.85", label="dense")
    axes.barh(list(weights), [left for _, left in weights.values()], label="kept")
    axes.invert_yaxis()
    axes.set(xlabel="weights", xscale="log")
    axes.legend()
    figure.savefig(path)


def kept(checkpoint: Path | None) -> str:
    """What is left of a run that was stopped."""
    if checkpoint is None:
        return "nothing was kept, since there is no --checkpoint"
    if not checkpoint.exists():
        return "the first epoch had not ended, so there is no checkpoint yet"
    return f"{checkpoint} keeps the run up to the end of its last whole epoch"


def train_and_prune(a: argparse.Namespace) -> None:
    if a.data_dir is None:
        train, test = digits()
    else:
        train = cifar10(a.data_dir, True, a.limit, download=True)
        test = cifar10(a.data_dir, False, a.limit, download=True)
    torch.manual_seed(a.seed)
    device = torch.device(a.device)
    net = build(a.model).to(device)
    run = Run(a, net, train, test, device)
    saved = None
    if a.checkpoint is not None and a.checkpoint.exists():
        saved = load_checkpoint(a.checkpoint, map_location=device)
        print(f"going on from {a.checkpoint}, epoch {saved['epoch']}")
    dense_done = 0 if saved is None else min(saved["epoch"], a.dense_epochs)

    pruning = options(a, net, test, run.batches)
    try:  # on a copy: what cannot be met fails before any training
        print(MinimaxPruner(copy.deepcopy(net), **pruning).plan)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"prune_cifar10.py: {error}") from error

    # ---- the dense network
    optimizer, rate = optimisation(net, a.lr, a.dense_epochs * run.batches)
    if saved is not None and saved["epoch"] < a.dense_epochs:
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        rate.load_state_dict(saved["rate"])

    def keep(epoch, dense, pruner=None):
        if a.checkpoint is not None:
            functional.reset_net(net)
            parts = {"net": net, "optimizer": optimizer, "rate": rate, "pruner": pruner}
            state = {key: part.state_dict() for key, part in parts.items() if part is not None}
            save_checkpoint({**state, "epoch": epoch, "dense": dense}, a.checkpoint)

    for epoch in range(dense_done, a.dense_epochs):
        loss = run.epoch(epoch, "dense", optimizer, rate)
        tqdm.write(f"dense {epoch}: loss {loss:.4f}, accuracy {run.accuracy():.4f}")
        keep(epoch + 1, None)
    if saved is not None and saved["epoch"] >= a.dense_epochs and saved["dense"] is not None:
        dense = saved["dense"]
    else:
        if saved is not None and saved["epoch"] == a.dense_epochs:
            net.load_state_dict(saved["net"])
        dense = [run.accuracy(), *run.operations()]

    # ---- the pruned one
    optimizer, rate = optimisation(net, a.lr / 2, a.epochs * run.batches)
    pruner = MinimaxPruner(net, optimizer=optimizer, **pruning)
    print(f"budget {a.budget} of {a.resource}: finished after {pruner.total_steps} steps")
    done = 0
    if saved is not None and "pruner" in saved:
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        rate.load_state_dict(saved["rate"])
        pruner.load_state_dict(saved["pruner"])
        done = saved["epoch"] - a.dense_epochs
    for epoch in range(done, a.epochs):
        loss = run.epoch(a.dense_epochs + epoch, "pruning", optimizer, rate, pruner)
        accuracy = run.accuracy()
        pruner.score(accuracy)
        tqdm.write(
            f"pruning {epoch}: {pruner.phase}, kept {pruner.density:.4f}, loss {loss:.4f}, "
            f"accuracy {accuracy:.4f}"
        )
        keep(a.dense_epochs + epoch + 1, dense, pruner)
    if not pruner.finished:
        raise RuntimeError("the announced steps are over and the pruner has not finished")
    if a.history is not None:
        pruner.history.save_csv(a.history)
    if a.csr is not None:
        save_checkpoint(export_csr(net), a.csr)
    print(f"\n{pruner}")
    if a.picture is not None:
        draw(pruner, a.picture)
    kept, resource = pruner.kept, pruner.resource
    make_permanent(net)
    rows = [("dense", 1.0, *dense), ("pruned", density(net), run.accuracy(), *run.operations())]
    print(f"\nkept {kept} weights, resource {resource:.6f} of budget {a.budget}")
    print(f"{'':8}{'density':>10}{'accuracy':>10}{'additions/image':>18}{'nJ/image':>12}")
    for name, share, accuracy, additions, picojoule in rows:
        print(f"{name:8}{share:10.5f}{accuracy:10.4f}{additions:18,.0f}{picojoule / 1e3:12.1f}")


if __name__ == "__main__":
    main()
