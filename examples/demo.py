"""The main job from end to end on real images: train, swap, train reversibly, prune.

    make demo                      (or: python examples/demo.py [--epochs 8] [--output runs/demo])

1. A SpikingJelly convolutional network is trained on handwritten digits in the usual way.
2. One call gives a copy of it learnable initial potentials; both train on with the LTS loss.
3. A small T-RevSNN trains reversibly, beside the same network on plain autograd.
4. The network of step 2 is pruned to 10% of its weights while it trains.
5. The network of step 1 trains once more in the usual way, and once holding bits.

Prints tables and saves a plot. Under three minutes on two CPU cores.
"""

from __future__ import annotations

import copy
import time

import matplotlib
import torch
from command_line import Command, count, new_folder, whole
from data import digit_loaders
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from tqdm import tqdm

import sj_ext
from sj_ext.analysis import activation_memory, per_step_accuracy, synaptic_operations
from sj_ext.memory import compact
from sj_ext.model import TRevSNN
from sj_ext.pruning import MinimaxPruner, density, make_permanent

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

T = 4


class OverTime(nn.Module):
    """Shows a static image to a multi-step network at each of T time steps."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self.net)
        return self.net(x.expand(T, *x.shape))


def if_node() -> nn.Module:
    """The neuron of the plain network: integrate and fire, reset by subtraction."""
    return neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(), detach_reset=True)


def convolutional_network(*spiking: nn.Module) -> nn.Module:
    """The kind of network that SpikingJelly's tutorials build, with three neuron layers.

    Its output are logits ``[T, N, 10]``.
    """
    first, second, third = spiking

    def block(inside: int, outside: int, node: nn.Module) -> list[nn.Module]:
        convolution = layer.Conv2d(inside, outside, 3, padding=1, bias=False)
        return [convolution, layer.BatchNorm2d(outside), node, layer.MaxPool2d(2)]

    net = nn.Sequential(
        *block(1, 32, first),
        *block(32, 64, second),
        layer.AdaptiveAvgPool2d(2),
        layer.Flatten(),
        layer.Linear(256, 128),
        third,
        layer.Linear(128, 10),
    )
    functional.set_step_mode(net, "m")
    return OverTime(net)


def train(net, data, loss_function, epochs, name, lr=2e-3, pruner=None):
    """Train ``net``; returns the mean loss of every epoch and the seconds it took."""
    optimizer = torch.optim.AdamW(sj_ext.parameter_groups(net, weight_decay=1e-4, lr=lr))
    losses, start = [], time.perf_counter()
    net.train()
    with tqdm(total=epochs * len(data), desc=name, unit="batch", disable=None) as bar:
        for _ in range(epochs):
            total = 0.0
            for x, target in data:
                optimizer.zero_grad()
                loss = loss_function(net(x), target)
                loss.backward()
                optimizer.step()
                if pruner is not None:
                    pruner.step()
                total += loss.item()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
            losses.append(total / len(data))
    return losses, time.perf_counter() - start


def initial_potentials(epochs, data, test, losses):
    """Parts 1 and 2: the host's network, then a copy with learned initial potentials."""
    rows = {}

    def run(net, loss_function, name):
        losses[name], seconds = train(net, data, loss_function, epochs, name)
        rows[name] = (per_step_accuracy(net, test), seconds)

    turns = convolutional_network(neuron.TurnOffNode(), neuron.TurnOffNode(), neuron.TurnOnNode())
    run(turns, functional.tet_cross_entropy, "turn-off and turn-on, TET")
    net = convolutional_network(if_node(), if_node(), if_node())
    run(net, functional.sdt_cross_entropy, "IF, SDT")
    functional.reset_net(net)  # potentials of the last batch cannot be copied
    imp = copy.deepcopy(net)
    count = sj_ext.swap_neurons(imp, {neuron.IFNode: neuron.IMPIFNode}, imp_shape="neuron")
    imp(next(iter(test))[0])  # the sizes of the potentials come from an input
    run(net, functional.lts_cross_entropy, "IF, then LTS")
    run(imp, functional.lts_cross_entropy, "IMP-IF, then LTS")

    print(f"\n{count} neuron layers replaced by one call. Test accuracy in % at each step:\n")
    print(f"{'':26}{'t=1':>7}{'t=2':>7}{'t=3':>7}{'t=4':>7}{'seconds':>10}")
    for name, (by_step, seconds) in rows.items():
        print(f"{name:26}" + "".join(f"{100 * a:7.1f}" for a in by_step) + f"{seconds:10.1f}")
    return imp, {name: by_step for name, (by_step, _) in rows.items()}


def reversible(epochs, losses):
    """Part 3: T-RevSNN with flat memory, beside the same network on plain autograd."""
    data, test = digit_loaders(size=32)
    x, target = next(iter(data))
    memory = {}
    print(f"\n{'T-RevSNN':26}{'T':>4}{'MB held after forward':>24}{'seconds a step':>17}")
    for num_steps in (2, 8):
        for kind in ("reversible", "autograd"):
            torch.manual_seed(0)
            net = TRevSNN(
                (16, 24, 32, 32), 10, num_steps, in_channels=1, encode="repeat", memory=kind
            )
            y_seq, counted = activation_memory(lambda net=net: net(x))
            del y_seq
            start = time.perf_counter()
            functional.tet_cross_entropy(net(x), target).backward()
            seconds = time.perf_counter() - start
            memory[kind, num_steps] = counted.saved / 2**20
            print(f"{kind:26}{num_steps:4}{memory[kind, num_steps]:24.1f}{seconds:17.2f}")
    net = TRevSNN((16, 24, 32, 32), 10, T, in_channels=1, memory="reversible")
    name = "T-RevSNN, TET"
    losses[name], seconds = train(net, data, functional.tet_cross_entropy, epochs, name, lr=5e-3)
    net.eval()
    with torch.no_grad():
        right = sum((net(x).argmax(-1) == y).sum().item() for x, y in test)
    print(f"trained reversibly in {seconds:.1f} s: {100 * right / len(test.dataset):.1f}% of the")
    print("test images, one pass of four narrow columns")
    return memory


def prune(net, epochs, data, test, losses):
    """Part 4: the network of part 2, pruned to a tenth of its weights while it trains on."""
    images = next(iter(test))[0]

    def report(name):
        net.eval()
        operations = synaptic_operations(net, images)
        accuracy = float(per_step_accuracy(net, test)[-1])
        print(
            f"{name:26}{density(net):10.4f}{100 * accuracy:12.1f}"
            f"{operations.acs / len(images):20,.0f}{operations.energy() / len(images) / 1e3:12.1f}"
        )

    print(f"\n{'':26}{'kept':>10}{'accuracy, %':>12}{'additions an image':>20}{'nJ':>12}")
    report("dense")
    pruner = MinimaxPruner(net, budget=0.1, schedule=epochs * len(data))
    losses["pruned to 10%, LTS"], _ = train(
        net, data, functional.lts_cross_entropy, epochs, "pruned to 10%", pruner=pruner
    )
    if not pruner.finished:
        raise RuntimeError(f"the pruner announced {epochs * len(data)} steps and needs more")
    make_permanent(net)
    report("pruned while training")
    return pruner


def compacted(epochs, seed):
    """Part 5: SpikingJelly's network in the usual way, and the same one holding bits."""
    usual = convolutional_network(if_node(), if_node(), if_node())
    print(f"\n{'':26}{'MB held':>10}{'MB at the peak':>16}{'loss at the end':>17}{'seconds':>10}")
    for name in ("plain", "compact"):
        data, _ = digit_loaders(size=16, seed=seed)
        x, target = next(iter(data))
        net = copy.deepcopy(usual)
        if name == "compact":
            net = compact(net, x, slices=8)

        def loss(net=net, x=x, target=target):
            return functional.sdt_cross_entropy(net(x), target)

        first = loss()  # makes the gradients, which both have
        first.backward()
        held = activation_memory(loss)[1].saved / 2**20
        peak = activation_memory(lambda loss=loss: loss().backward())[1].peak / 2**20
        losses, seconds = train(net, data, functional.sdt_cross_entropy, epochs, f"{name}, SDT")
        print(f"{name:26}{held:10.2f}{peak:16.2f}{losses[-1]:17.4f}{seconds:10.1f}")


def plot(path, losses, by_step, memory, pruner):
    """Four panels: losses, accuracy per step, memory, what the pruner kept."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 8.4), layout="constrained")
    axes = grid.flat
    for name, values in losses.items():
        axes[0].plot(range(1, len(values) + 1), values, label=name)
    axes[0].set(xlabel="epoch", ylabel="loss", yscale="log", title="Training")
    for name, values in by_step.items():
        axes[1].plot(range(1, T + 1), 100 * values, "o-", label=name)
    axes[1].set(xlabel="time step", ylabel="test accuracy, %", title="Accuracy per step")
    for kind in ("autograd", "reversible"):
        steps = [t for k, t in memory if k == kind]
        axes[2].plot(steps, [memory[kind, t] for t in steps], "o-", label=kind)
    axes[2].set(xlabel="time steps T", ylabel="MB held", title="T-RevSNN memory", ylim=(0, None))
    shares = pruner.kept_shares
    axes[3].barh(list(shares), list(shares.values()))
    axes[3].set(xlabel="share of weights kept", title="Pruned to 10%")
    for ax in list(axes)[:3]:  # off the curves, and ticks at whole epochs and steps
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(
            fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2, frameon=False
        )
    figure.savefig(path, dpi=120)


def make_parser() -> Command:
    parser = Command(__doc__)
    parser.add_argument("--epochs", type=count, default=8, help="of each training")
    parser.add_argument("--output", type=new_folder, default="runs/demo", help="folder of the plot")
    parser.add_argument("--seed", type=whole, default=0, help="of weights and batches")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse(argv)
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    losses: dict[str, list[float]] = {}
    data, test = digit_loaders(seed=args.seed)
    net, by_step = initial_potentials(args.epochs, data, test, losses)
    memory = reversible(max(1, args.epochs * 5 // 8), losses)
    pruner = prune(net, args.epochs, data, test, losses)
    compacted(max(1, args.epochs // 8), args.seed)
    plot(args.output / "demo.png", losses, by_step, memory, pruner)
    print("\nMean loss of each epoch:")
    for name, values in losses.items():
        print(f"{name:26}" + "".join(f"{value:8.3f}" for value in values))
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} seconds in all; plot in {args.output / 'demo.png'}")


if __name__ == "__main__":
    main()
