"""Training memory of T-RevSNN per image, counted tensor by tensor.

A training step is run on a batch of 2 and on a batch of 4 images. Half the difference is what one
image costs; weights, their gradients and whatever else does not grow with the batch cancel. "Held"
is what the forward pass leaves for the backward pass, "peak" the most that is alive at one moment
of the step.

    python examples/benchmarks/trevsnn_memory.py             # small, 224 x 224, T = 4 and 16
    python examples/benchmarks/trevsnn_memory.py --short     # tiny, 64 x 64
"""

from __future__ import annotations

import argparse
import platform

import torch

import sj_ext
from sj_ext.analysis import activation_memory
from sj_ext.functional import tet_cross_entropy
from sj_ext.model import trevsnn_small, trevsnn_tiny


def step_memory(net, images: torch.Tensor, target: torch.Tensor) -> tuple[int, int]:
    """Bytes held after the forward pass, and the peak of the whole step."""
    net.zero_grad(set_to_none=True)
    loss, forward = activation_memory(lambda: tet_cross_entropy(net(images), target))
    loss.backward()  # gradients exist from here on, and do not count below
    _, step = activation_memory(lambda: tet_cross_entropy(net(images), target).backward())
    return forward.saved, step.peak


def per_image(net, size: int, device: str) -> tuple[float, float]:
    """MB per image: held, peak."""
    counted = {}
    for batch in (2, 4):
        images = torch.randn(batch, 3, size, size, device=device)
        target = torch.randint(net.num_classes, (batch,), device=device)
        counted[batch] = step_memory(net, images, target)
    return tuple((b - a) / 2 / 1e6 for a, b in zip(counted[2], counted[4], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--norm", choices=("bn", "ws"), default="bn")
    parser.add_argument("--encode", choices=("repeat", "group"), default="repeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autograd", action="store_true", help="measure plain autograd as well")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()

    build, size, name = trevsnn_small, 224, "small"
    if args.short:
        build, size, name = trevsnn_tiny, 64, "tiny"
    print(f"sj_ext {sj_ext.__version__}, torch {torch.__version__}, {platform.processor()}")
    print(f"{name}, {size} x {size}, encode={args.encode}, norm={args.norm}, float32, MB per image")
    print(f"{'T':>3} {'memory':<12} {'held':>8} {'peak':>8}")
    memories = ("reversible", "autograd") if args.autograd or args.short else ("reversible",)
    for steps in args.steps:
        for memory in memories:
            torch.manual_seed(0)
            net = build(1000, steps, encode=args.encode, norm=args.norm, memory=memory)
            net.to(args.device)
            held, peak = per_image(net, size, args.device)
            print(f"{steps:>3} {memory:<12} {held:8.2f} {peak:8.2f}", flush=True)


if __name__ == "__main__":
    main()
