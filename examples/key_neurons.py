"""Which neurons of a spiking ResNet carry the gradient through time.

The network is trained with the full gradient. Now and then the cosine similarity of that gradient
with four others is taken, in which the temporal gradient is

    kept only at the last neuron of every stage,   kept only at as many other neurons,
    dropped only at the last neuron of every stage, dropped only at as many other neurons

("others" are drawn anew each time and averaged). Stage ends are key neurons if the first column
stays higher than the second and the third lower than the fourth.

    python examples/key_neurons.py                       # scikit-learn's digits
    python examples/key_neurons.py --short
    python examples/key_neurons.py --data-dir CIFAR10
    python examples/key_neurons.py --plot key_neurons.png

Source: figure 2 of "High-Performance Temporal Reversible Spiking Neural Networks with O(L) Training
Memory and O(1) Inference Cost", ICML 2024, arXiv 2405.16466.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from command_line import DATA, Command, cifar10_folder, count, device, new_file, whole
from data import cifar10, digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sj_ext import host
from sj_ext.analysis import gradient_similarity

COLUMNS = ("kept at ends", "kept at others", "dropped at ends", "dropped at others")


class SpikingResNet(nn.Module):
    """Four stages of the host's basic blocks, for images of 8 to 32 pixels."""

    def __init__(self, channels: int, num_classes: int, width: int, blocks: int, side: int):
        super().__init__()
        self.stem = nn.Sequential(
            host.layer.Conv2d(channels, width, 3, padding=1, bias=False),
            host.layer.BatchNorm2d(width),
            neuron(),
        )
        strides = (1, 2, 2, 2) if side >= 32 else (1, 2, 1, 2)
        stages, below = [], width
        for i, stride in enumerate(strides):
            stages.append(stage(below, width * 2**i, blocks, stride))
            below = width * 2**i
        self.stages = nn.Sequential(*stages)
        self.classify = host.layer.Linear(below, num_classes)
        host.functional.set_step_mode(self, "m")

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        """Images ``[T, N, C, H, W]`` to logits ``[T, N, classes]``."""
        return self.classify(self.stages(self.stem(x_seq)).mean((3, 4)))

    def stage_ends(self) -> list[nn.Module]:
        """The last neuron of every stage."""
        return [blocks[-1].sn2 for blocks in self.stages]


def neuron() -> nn.Module:
    """Leaky, with soft reset."""
    return host.neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_reset=None,
        detach_reset=True,
        surrogate_function=host.surrogate.ATan(),
    )


def stage(below: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Basic blocks, the first of which changes the resolution."""
    from spikingjelly.activation_based.model.spiking_resnet import BasicBlock

    made = []
    for i in range(blocks):
        shortcut = None
        if i == 0 and (stride != 1 or below != channels):
            shortcut = nn.Sequential(
                host.layer.Conv2d(below, channels, 1, stride, bias=False),
                host.layer.BatchNorm2d(channels),
            )
        made.append(
            BasicBlock(
                below if i == 0 else channels,
                channels,
                stride if i == 0 else 1,
                shortcut,
                spiking_neuron=lambda: neuron(),
            )
        )
    return nn.Sequential(*made)


def load(data_dir: Path | None, limit: int) -> Dataset:
    """Images ``[C, H, W]``, about standardised, and labels."""
    if data_dir is None:
        images, labels = digits()[0].tensors
        count = limit or len(labels)
        return TensorDataset((images[:count] - 0.3) / 0.38, labels[:count])
    pixels, labels = cifar10(data_dir, True, limit or None)
    images = pixels.float() / 255
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return TensorDataset((images - mean) / std, labels)


def measure(network: SpikingResNet, batch, num_steps: int, draws: int) -> list[float]:
    """The four similarities, in the order of ``COLUMNS``."""
    images, labels = batch
    ends = network.stage_ends()
    nodes = [m for m in network.modules() if isinstance(m, host.neuron.BaseNode)]
    others = [node for node in nodes if all(node is not end for end in ends)]
    drawn = [random.sample(others, min(len(ends), len(others))) for _ in range(draws)]

    def loss() -> torch.Tensor:
        logits = network(images.expand(num_steps, *images.shape))
        return cross_entropy(logits.mean(0), labels)

    return [
        gradient_similarity(network, loss, kept=ends),
        statistics.fmean(gradient_similarity(network, loss, kept=nodes) for nodes in drawn),
        gradient_similarity(network, loss, dropped=ends),
        statistics.fmean(gradient_similarity(network, loss, dropped=nodes) for nodes in drawn),
    ]


def follow(
    network: SpikingResNet,
    loader: DataLoader,
    epochs: int,
    every: int,
    num_steps: int,
    draws: int,
    device: str = "cpu",
) -> Iterator[tuple[int, float | None, list[float]]]:
    """Train the network with the full gradient, and measure before every so many steps.

    The similarities are always those of the gradient on the same batch, the first of the data.

    Yields:
        Optimizer steps done, accuracy on the images since the last time (None at first), and what
        :func:`measure` returns.
    """
    images, labels = loader.dataset.tensors
    batch = [part[: loader.batch_size].to(device) for part in (images, labels)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    done = correct = seen = 0
    for _ in range(epochs):
        for x, y in loader:
            if done % every == 0:
                yield (
                    done,
                    correct / seen if seen else None,
                    measure(network, batch, num_steps, draws),
                )
                correct = seen = 0
            x, y = x.to(device), y.to(device)
            logits = network(x.expand(num_steps, *x.shape)).mean(0)
            optimizer.zero_grad()
            cross_entropy(logits, y).backward()
            optimizer.step()
            host.functional.reset_net(network)
            correct, seen = correct + int((logits.argmax(1) == y).sum()), seen + len(y)
            done += 1


SHORT = {"epochs": 1, "width": 8, "blocks": 1, "draws": 1, "limit": 128, "batch_size": 32}


def make_parser() -> Command:
    parser = Command(__doc__, short=SHORT)
    add = parser.add_argument
    add("--data-dir", type=cifar10_folder, help=f"{DATA}; without it, scikit-learn's digits")
    add("--limit", type=whole, default=0, help="use only that many images; 0: all")
    add("--epochs", type=count, default=5, help="of training")
    add("--every", type=whole, default=0, help="updates between measurements; 0: half an epoch")
    add("--num-steps", type=count, default=4, help="T")
    add("--width", type=count, default=16, help="channels of the first stage")
    add("--blocks", type=count, default=2, help="blocks of every stage")
    add("--batch-size", type=count, default=64, help="images of an update")
    add("--draws", type=count, default=3, help="draws of other neurons")
    add("--device", type=device, default="cpu", help="of PyTorch")
    add("--seed", type=whole, default=0, help="of weights, order and draws")
    add("--plot", type=new_file, help="save a figure (needs matplotlib)")
    parser.also("--steps", "--num-steps", count)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse(argv)
    torch.manual_seed(args.seed)
    random.seed(args.seed)

    data = load(args.data_dir, args.limit)
    images, labels = data.tensors
    network = SpikingResNet(
        images.shape[1], int(labels.max()) + 1, args.width, args.blocks, images.shape[-1]
    ).to(args.device)
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)
    every = args.every or max(1, len(loader) // 2)
    rows = []
    print(f"{'step':>6}  {'accuracy':>8}  " + "  ".join(f"{name:>17}" for name in COLUMNS))
    for done, accuracy, similarities in follow(
        network, loader, args.epochs, every, args.num_steps, args.draws, args.device
    ):
        rows.append((done, *similarities))
        shown = " " * 8 if accuracy is None else f"{accuracy:8.3f}"
        print(f"{done:>6}  {shown}  " + "  ".join(f"{value:17.4f}" for value in similarities))
    means = [statistics.fmean(column) for column in list(zip(*rows, strict=True))[1:]]
    print(f"{'mean':>6}  {'':8}  " + "  ".join(f"{value:17.4f}" for value in means))
    if args.plot:
        plot(rows, args.plot)


def plot(rows: list[tuple], path: Path) -> None:
    """Similarities over training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    steps, *columns = zip(*rows, strict=True)
    for name, values in zip(COLUMNS, columns, strict=True):
        ax.plot(steps, values, marker="o", label=f"temporal gradient {name}")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("cosine similarity with the full gradient")
    ax.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
