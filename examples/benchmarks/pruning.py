"""Cost of the minimax pruner beside the training step, and of its selection beside the plain one.

Three comparisons, each with both sides interleaved in this run:

* ``.step()`` over forward, backward and optimizer of SpikingJelly's spiking VGG-11 (T = 4, batch
  16, 32 x 32), while compressing and while fine-tuning;
* finding and cutting the smallest of 10 million weights, over gathering, topk and kthvalue;
* with ``--exact``, kept counts at six budgets on the full VGG-11 and SEW-ResNet-18 with the default
  settings (weights are moved at random in place of training, which the pruner cannot tell), and at
  shares and absolute budgets on an MLP, a Spikformer and an LSTM;
* with ``--shrink``, a forward pass of SEW-ResNet-18 (T = 4, batch 16, 32 x 32) over that of the
  same network pruned to half of its energy by channels and shrunk.

Usage: python examples/benchmarks/pruning.py [--short] [--exact] [--shrink] [--no-timing]
       [--repeats N]
With numba installed the selection is compiled; ``NUMBA_DISABLE_JIT=1`` shows what it is without.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from torch import nn

from sj_ext import host
from sj_ext.model.transformer.spikformer import spikformer
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, density, shrink
from sj_ext.pruning.selection import Ranking, zero_below_
from sj_ext.pruning.selection.compiled import scanner

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # examples/, also as a script

from command_line import Command, count, share  # noqa: E402

NEURON = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}


def seconds(fn) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"median {statistics.median(values):.4f} (from {low:.4f} to {high:.4f})"


def vgg(short: bool) -> nn.Module:
    if short:  # a quarter of the channels' weights and a small classifier
        net = spiking_vgg.SpikingVGG(
            [16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"],
            num_classes=10,
            norm_layer=None,
            **NEURON,
        )
        net.classifier = nn.Sequential(
            *(type(m)(6272, 256) if i == 0 else m for i, m in enumerate(net.classifier))
        )
        net.classifier[3] = type(net.classifier[3])(256, 256)
        net.classifier[6] = type(net.classifier[6])(256, 10)
    else:
        net = spiking_vgg.spiking_vgg11(num_classes=10, **NEURON)
    functional.set_step_mode(net, "m")
    return net


def step_times(short: bool, repeats: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of training steps and of pruner steps, taken in turn, by phase."""
    net = vgg(short)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    pruner = MinimaxPruner(net, budget=0.05, optimizer=optimizer)
    x, target = torch.rand(4, 16, 3, 32, 32), torch.randint(10, (16,))

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x).mean(0), target).backward()
        optimizer.step()
        functional.reset_net(net)

    weights = sum(p.numel() for p in net.parameters())
    print(f"spiking VGG-11, {weights / 1e6:.1f} million parameters, T=4, batch 16, 32x32, SGD")
    phases: dict[str, tuple[list[float], list[float]]] = {}
    train()
    pruner.step()
    for phase in ("compress", "finetune"):
        while pruner.phase != phase:  # on to the next phase, without training
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            pruner.step()
        pairs = [(seconds(train), seconds(pruner.step)) for _ in range(repeats)]
        phases[phase] = ([t for t, _ in pairs], [s for _, s in pairs])
    return phases


def overhead(short: bool, repeats: int) -> None:
    for phase, (trained, stepped) in step_times(short, repeats).items():
        ratio = statistics.median(s / t for s, t in zip(stepped, trained, strict=True))
        print(f"  {phase:9} training step {spread(trained)} s")
        print(f"  {'':9} pruner.step() {spread(stepped)} s")
        print(f"  {'':9} ratio, median of pairs: {ratio:.3f}")


def plain(tensors: list[torch.Tensor], count: int) -> None:
    """The formulas as they stand: gather, topk for the sum, kthvalue for the next weight."""
    weights = torch.cat([tensor.abs() for tensor in tensors])
    weights.square().topk(count, largest=False).values.sum()
    threshold = weights.kthvalue(count + 1).values
    for tensor in tensors:
        tensor.mul_(tensor.abs() >= threshold)


def ours(tensors: list[torch.Tensor], count: int) -> None:
    ranking = Ranking(tensors, count, count + 1)
    ranking.energy(count)
    ranking.magnitude_at(count + 1)
    zero_below_(tensors, ranking.cut(count))


def selection_times(total: int, repeats: int) -> list[tuple[float, float]]:
    """Seconds of the plain selection of ``total`` weights and of this one, taken in turn."""
    sizes = [total // 2, total // 4, total // 8, total // 8]
    times = []
    for _ in range(repeats):
        tensors = [torch.randn(size) for size in sizes]
        copies = [tensor.clone() for tensor in tensors]
        count = int(0.8 * total)
        times.append(
            (
                seconds(lambda c=copies, n=count: plain(c, n)),
                seconds(lambda t=tensors, n=count: ours(t, n)),
            )
        )
        # the plain threshold keeps weights that tie with it, the count here is exact
        for tensor, copy in zip(tensors, copies, strict=True):
            differs = copy[tensor != copy].abs().unique()
            assert len(differs) <= 1
    return times


def selection(short: bool, repeats: int) -> None:
    total = 1_000_000 if short else 10_000_000
    ratios = sorted((a / b, a, b) for a, b in selection_times(total, repeats))
    middle = ratios[len(ratios) // 2]
    print(
        f"selection at {total / 1e6:g} million weights, 80% cut: plain {middle[1]:.4f} s, "
        f"here {middle[2]:.4f} s, {middle[0]:.1f} times faster "
        f"(from {ratios[0][0]:.1f} to {ratios[-1][0]:.1f})"
    )


def small_networks(short: bool) -> dict[str, nn.Module]:
    width = 64 if short else 512
    former = spikformer(10, 4, depth=2, dim=width // 2, num_heads=8, patch_size=4)
    return {
        "MLP": nn.Sequential(
            nn.Linear(784, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        ),
        "Spikformer": former,
        "LSTM": nn.ModuleDict({"lstm": nn.LSTM(128, width, 2), "head": nn.Linear(width, 10)}),
    }


def exact_amounts(short: bool, only: str) -> None:
    """Counts at shares and at whole numbers of weights, moved at random for 20 steps."""
    for budget in (0.25, 0.05, 0.01, 100_000, 12_345):
        for name, net in small_networks(short).items():
            if only not in name:
                continue
            pruner = MinimaxPruner(net, budget={"params": budget}, first=True, schedule=20)
            total = sum(dense for dense, _ in pruner.layer_counts.values())
            allowed = budget if budget > 1 else budget * total
            while not pruner.finished:
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter.add_(1e-3 * torch.randn_like(parameter))
                pruner.step()
            print(f"{name}: budget {budget}, kept {pruner.kept} of {total}, allowed {allowed:.1f}")
            assert 0 <= min(allowed, total) - pruner.kept < 1
            assert abs(density(net) * total - pruner.kept) < 0.5


def shrunk(short: bool, repeats: int) -> None:
    """Forward passes of a dense network and of its smaller copy, taken in turn."""
    torch.manual_seed(0)
    if short:
        net = sew_resnet.SEWResNet(sew_resnet.BasicBlock, [1, 1, 1, 1], 10, cnf="ADD", **NEURON)
    else:
        net = sew_resnet.sew_resnet18(num_classes=10, cnf="ADD", **NEURON)
    functional.set_step_mode(net, "m")
    x = torch.rand(4, 2 if short else 16, 3, 32, 32)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.5
        for _ in range(4):  # statistics with which the neurons fire in evaluation too
            net(x)
            functional.reset_net(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    pruner = GlobalMagnitudePruner(
        net,
        budget=0.5,
        resource="energy",
        granularity="channel",
        example_input=x,
        schedule=1,
        first=True,
    )
    net(x).mean(0).square().mean().backward()
    optimizer.step()
    functional.reset_net(net)
    pruner.step()
    print(
        f"SEW-ResNet-18: energy {pruner.resource:.4f} of the dense network's, {pruner.density:.4f} "
        "of its weights kept"
    )
    small = shrink(net, x)
    pair = (net.eval(), small.eval())

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(x)
        functional.reset_net(model)

    for model in pair:
        forward(model)
    times = [[seconds(lambda m=model: forward(m)) for model in pair] for _ in range(repeats)]
    ratio = statistics.median(after / before for before, after in times)
    sizes = [sum(p.numel() for p in model.parameters()) for model in pair]
    print(f"  dense   {sizes[0]} parameters, forward {spread([t for t, _ in times])} s")
    print(f"  shrunk  {sizes[1]} parameters, forward {spread([t for _, t in times])} s")
    print(f"  ratio, median of pairs: {ratio:.3f}")


def exact(short: bool, only: str, budgets: list[float]) -> None:
    nets = {
        "spiking VGG-11": lambda: vgg(short),
        "SEW-ResNet-18": lambda: sew_resnet.sew_resnet18(num_classes=10, cnf="ADD", **NEURON),
    }
    for name, build in nets.items():
        if only not in name:
            continue
        for budget in budgets:
            net = build()
            total = sum(
                m.weight.numel() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))
            )
            # the first layer costs more than the smallest budgets in the short form
            pruner = MinimaxPruner(net, budget=budget, first=short)
            weights = [p for p in net.parameters() if p.dim() > 1]
            steps = 0
            while not pruner.finished:
                with torch.no_grad():
                    for weight in weights:  # a cheap and fresh motion of every weight
                        flat = weight.view(-1)
                        noise = torch.randn(min(flat.numel(), 65_537)).mul_(1e-3)
                        for part in flat.split(noise.numel()):
                            part.add_(noise[: part.numel()])
                pruner.step()
                steps += 1
            missing = budget * total - pruner.kept
            print(
                f"{name}: budget {budget}, kept {pruner.kept} of {total}, allowed "
                f"{budget * total:.1f}, finished after {steps} of {pruner.total_steps} steps",
                flush=True,
            )
            assert 0 <= missing < 1 and steps == pruner.total_steps


BUDGETS = [0.5, 0.25, 0.1, 0.05, 0.01, 0.002]


def make_parser() -> Command:
    parser = Command(__doc__, short={"repeats": 3})
    add = parser.add_argument
    add("--exact", action="store_true", help="also count on the full networks")
    add("--shrink", action="store_true", help="also time a shrunk network")
    add("--only", default="", help="networks of --exact whose name has this")
    add("--budgets", type=share, nargs="+", default=BUDGETS, help="shares of the weights")
    add("--no-timing", action="store_true", help="only --exact")
    add("--repeats", type=count, default=15, help="runs to time")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse(argv)
    repeats = arguments.repeats
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, spikingjelly {host.VERSION}, "
        f"selection {'in NumPy' if scanner() is None else 'compiled by numba'}"
    )
    if not arguments.no_timing:
        overhead(arguments.short, repeats)
        selection(arguments.short, repeats)
    if arguments.exact:
        exact(arguments.short, arguments.only, arguments.budgets)
        exact_amounts(arguments.short, arguments.only)
    if arguments.shrink:
        shrunk(arguments.short, repeats)


if __name__ == "__main__":
    main()
