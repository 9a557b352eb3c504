"""Networks of SpikingJelly's own layers and blocks, narrow enough for small images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model.sew_resnet import BasicBlock
from torch import nn

Node = Callable[[], nn.Module]


def lif() -> nn.Module:
    """Leaky, with soft reset."""
    return neuron.LIFNode(decay_input=False, **NODE)


def integrate_and_fire() -> nn.Module:
    """Without leak, with soft reset."""
    return neuron.IFNode(**NODE)


NODE = {"v_reset": None, "detach_reset": True, "surrogate_function": surrogate.ATan()}


class OverTime(nn.Module):
    """Images ``[N, C, H, W]`` to logits ``[T, N, classes]``: encoded once, shown at every step.

    With ``num_steps=None`` the input is event frames ``[N, T, C, H, W]``, all of them encoded.
    """

    def __init__(self, stem: nn.Module, body: nn.Module, num_steps: int | None):
        super().__init__()
        self.stem, self.body, self.num_steps = stem, body, num_steps
        functional.set_step_mode(body, "m")
        if num_steps is None:
            functional.set_step_mode(stem, "m")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self)
        if self.num_steps is None:
            return self.body(self.stem(x.transpose(0, 1)))
        current = self.stem(x)
        return self.body(current.expand(self.num_steps, *current.shape))


def convolution(below: int, channels: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias and batch normalisation."""
    conv = layer.Conv2d(below, channels, size, stride, padding=size // 2, bias=False)
    return [conv, layer.BatchNorm2d(channels)]


class Pooled(nn.Module):
    """Average over the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((-2, -1))


def sew_resnet(
    channels: int,
    widths: Sequence[int],
    num_steps: int | None,
    node: Node = lif,
    blocks: int = 1,
    classes: int = 10,
) -> OverTime:
    """A SEW-ResNet (ADD) of the host's blocks, one stage per width; each but the first halves."""
    stem = nn.Sequential(*convolution(channels, widths[0]))
    body: list[nn.Module] = [node()]
    below = widths[0]
    for i, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if i and not block else 1
            changes = stride > 1 or below != width
            shortcut = nn.Sequential(*convolution(below, width, 1, stride)) if changes else None
            body.append(
                BasicBlock(below, width, stride, shortcut, cnf="ADD", spiking_neuron=lambda: node())
            )
            below = width
    body += [Pooled(), layer.Linear(below, classes)]
    return OverTime(stem, nn.Sequential(*body), num_steps)


def vgg(
    channels: int, widths: Sequence[int], num_steps: int, side: int, classes: int = 10
) -> OverTime:
    """Convolution, LIF, pooling for every width, then a linear layer."""
    stem = nn.Sequential(*convolution(channels, widths[0]))
    body: list[nn.Module] = [lif(), layer.MaxPool2d(2)]
    side //= 2
    for below, width in itertools.pairwise(widths):
        body += [*convolution(below, width), lif()]
        if side > 2:
            body.append(layer.MaxPool2d(2))
            side //= 2
    body += [layer.Flatten(), layer.Linear(widths[-1] * side**2, classes)]
    return OverTime(stem, nn.Sequential(*body), num_steps)


class Zoo(nn.Module):
    """A network of SpikingJelly's model zoo for 32 x 32 images, as :mod:`prune_cifar10` builds."""

    def __init__(self, name: str, num_steps: int):
        super().__init__()
        from prune_cifar10 import build

        self.net, self.num_steps = build(name), num_steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self)
        return self.net(x.expand(self.num_steps, *x.shape))
