"""Joint minimax compression beside its baselines, on scikit-learn's digits.

Every method starts from the same dense network of a seed and trains for the same number of epochs
after it, with the same optimizer and learning rates:

* joint: compression and fine-tuning in turns, down the levels of the default schedule;
* compress, then fine-tune: the same minimax updates in one go for half of the epochs, then
  fine-tuning with fixed masks;
* global magnitude: one cut at the start, then fine-tuning;
* iterative magnitude and layer-wise magnitude, for comparison.

Usage: python examples/benchmarks/pruning_digits.py [--short] [--seeds N] [--epochs N] [--kept ...]
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from tqdm import tqdm

from sj_ext import host
from sj_ext.pruning import (
    GlobalMagnitudePruner,
    IterativeMagnitudePruner,
    LayerMagnitudePruner,
    MinimaxPruner,
    Schedule,
    compress_then_finetune,
)

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # examples/, also as a script

from command_line import Command, count, positive, share, whole  # noqa: E402

STEPS_IN_TIME, BATCH = 4, 64


def network() -> nn.Module:
    def lif():
        return neuron.LIFNode(
            decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True
        )

    net = nn.Sequential(
        layer.Linear(64, 256), lif(), layer.Linear(256, 256), lif(), layer.Linear(256, 10)
    )
    for module in net[::2]:  # large enough that the neurons fire from the start
        nn.init.kaiming_normal_(module.weight)
    functional.set_step_mode(net, "m")
    return net


def split(seed: int):
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    target = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[360:], order[:360]
    return (x[train], target[train]), (x[test], target[test])


def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    functional.reset_net(net)
    return net(x.expand(STEPS_IN_TIME, *x.shape)).mean(0)


def train(net, data, epochs, lr, generator, make_pruner=None):
    x, target = data
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    batches = len(x) // BATCH
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * i / (epochs * batches)))
    )
    pruner = make_pruner(net, optimizer, epochs * batches) if make_pruner else None
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator)[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(net, x[part]), target[part]).backward()
            optimizer.step()
            rate.step()
            if pruner:
                pruner.step()
    return pruner


@torch.no_grad()
def accuracy(net: nn.Module, data) -> float:
    net.eval()
    x, target = data
    return float((forward(net, x).argmax(1) == target).float().mean())


def methods(kept: float, rates):
    common = {"budget": kept, "first": True}

    def joint(net, optimizer, steps):
        extra = {} if rates is None else {"rates": rates}
        return MinimaxPruner(net, schedule=steps, optimizer=optimizer, **common, **extra)

    def then(net, optimizer, steps):
        return compress_then_finetune(
            net,
            compress_steps=steps // 2,
            finetune_steps=steps - steps // 2,
            optimizer=optimizer,
            **common,
        )

    def once(net, optimizer, steps):
        return GlobalMagnitudePruner(net, schedule=steps, optimizer=optimizer, **common)

    def layers(net, optimizer, steps):
        return LayerMagnitudePruner(net, schedule=steps, optimizer=optimizer, **common)

    def iterative(net, optimizer, steps):
        return IterativeMagnitudePruner(
            net, schedule=Schedule.geometric(kept, steps), optimizer=optimizer, **common
        )

    return {
        "joint minimax": joint,
        "compress, then fine-tune": then,
        "global magnitude": once,
        "layer-wise magnitude": layers,
        "iterative magnitude": iterative,
    }


def make_parser() -> Command:
    parser = Command(__doc__, short={"seeds": 1, "epochs": 6, "dense_epochs": 2})
    add = parser.add_argument
    add("--seeds", type=count, default=5, help="how many runs")
    add("--epochs", type=count, default=40, help="after the dense network")
    add("--dense-epochs", type=whole, default=20, help="of the dense network")
    add("--lr", type=positive, default=2e-3, help="learning rate")
    add("--kept", type=share, nargs="+", default=[0.05, 0.02], help="shares of the weights")
    add("--only", nargs="+", help="first words of the methods to run")
    add("--rates", type=positive, nargs=3, help="of s, y and z, for the joint method")
    return parser


def main(argv: list[str] | None = None) -> None:
    a = make_parser().parse(argv)
    print(
        f"torch {torch.__version__}, spikingjelly {host.VERSION}, {torch.get_num_threads()} "
        f"threads; {a.dense_epochs} dense epochs, then {a.epochs}; {a.seeds} seeds; lr {a.lr}"
    )
    start = time.perf_counter()
    results: dict[tuple[float, str], list[float]] = {}
    for seed in tqdm(range(a.seeds), "seeds", disable=None):
        torch.manual_seed(seed)
        data, test = split(seed)
        dense = network()
        train(dense, data, a.dense_epochs, a.lr, torch.Generator().manual_seed(seed))
        results.setdefault((1.0, "dense"), []).append(accuracy(dense, test))
        functional.reset_net(dense)
        for kept in a.kept:
            every = methods(kept, a.rates).items()
            for name, make in tqdm(every, f"{kept:g} kept", leave=False, disable=None):
                if a.only and not any(name.startswith(word) for word in a.only):
                    continue
                net = copy.deepcopy(dense)
                generator = torch.Generator().manual_seed(1000 + seed)
                pruner = train(net, data, a.epochs, a.lr, generator, make)
                if not pruner.finished or pruner.density > kept:
                    raise RuntimeError(f"{name} did not meet {kept}: {pruner.density}")
                results.setdefault((kept, name), []).append(accuracy(net, test))
    for (kept, name), values in results.items():
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        each = " ".join(f"{value:.4f}" for value in values)
        print(
            f"kept {kept:5}  {name:25} mean accuracy {statistics.mean(values):.4f} "
            f"+- {error:.4f} (standard error); {each}"
        )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
