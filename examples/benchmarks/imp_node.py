"""What a learnable initial potential costs: IMP nodes over the host's own, and the TET losses.

Times are forward and backward of whole sequences (processor time, taken in turn, median of the
ratios). Memory is what a loss and its backward pass allocate at most, counted tensor by tensor,
over cross-entropy on the flattened logits.

    python examples/benchmarks/imp_node.py [--short] [--repeats 101]
"""

from __future__ import annotations

import platform
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from sj_ext import functional, host
from sj_ext.analysis import activation_memory
from sj_ext.neuron import IMPIFNode, IMPLIFNode, IMPParametricLIFNode

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # examples/, also as a script

from command_line import Command, count  # noqa: E402
from timing import interleaved  # noqa: E402

NODES = {
    IMPIFNode: host.neuron.IFNode,
    IMPLIFNode: host.neuron.LIFNode,
    IMPParametricLIFNode: host.neuron.ParametricLIFNode,
}


def node_ratios(imp, own, shape: tuple[int, ...], repeats: int) -> list[float]:
    """Forward and backward of an IMP node over the host's own, taken in turn."""
    x_seq, grad = torch.randn(shape), torch.randn(shape)

    def sequence(node):
        host.functional.reset_net(node)
        x = x_seq.detach().requires_grad_()
        return lambda: node(x).backward(grad)

    nodes = {"ours": imp(step_mode="m"), "host's": own(step_mode="m")}
    sides = {name: partial(sequence, node) for name, node in nodes.items()}
    times = interleaved(sides, repeats, warm_up=3)
    return [a / b for a, b in zip(times["ours"], times["host's"], strict=True)]


def loss_ratios(shape: tuple[int, int, int]) -> dict[tuple[str, str], float]:
    """Peak bytes of each loss and kind of target, over cross-entropy on the flattened logits."""
    y_seq = torch.randn(shape)
    steps, batch, classes = shape
    indices = torch.randint(classes, (batch,))
    probabilities = torch.rand(batch, classes).softmax(-1)

    def peak(loss) -> int:
        y = y_seq.detach().requires_grad_()
        return activation_memory(lambda: loss(y).backward())[1].peak

    flat = {
        "indices": (indices, indices.repeat(steps)),
        "probabilities": (probabilities, probabilities.repeat(steps, 1)),
    }
    ratios = {}
    for name, (target, repeated) in flat.items():
        plain = peak(lambda y, target=repeated: cross_entropy(y.flatten(0, 1), target))
        for loss in ("sdt", "tet", "tet_s", "lts"):
            function = getattr(functional, f"{loss}_cross_entropy")
            ours = peak(lambda y, f=function, target=target: f(y, target))
            ratios[loss, name] = ours / plain
    return ratios


def make_parser() -> Command:
    parser = Command(__doc__, short={"repeats": 15})
    parser.add_argument("--repeats", type=count, default=101, help="pairs of runs to time")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse(argv)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, SpikingJelly {host.VERSION}")
    shape = (4, 16, 64, 16, 16)
    print(f"\ninput {list(shape)}: forward and backward, IMP node over the host's")
    for imp, own in tqdm(NODES.items(), leave=False, disable=None):
        ratios = node_ratios(imp, own, shape, args.repeats)
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  {own.__name__:18} {middle:.3f}  (quartiles {low:.3f} to {high:.3f})")
    shape = (16, 256, 1000)
    print(f"\ny_seq {list(shape)}: bytes allocated at most, over cross-entropy on flattened logits")
    for (loss, name), ratio in loss_ratios(shape).items():
        print(f"  {loss:6} {name:14} {ratio:.3f}")


if __name__ == "__main__":
    main()
