r"""AutoSNN's networks: a stem, slots of spiking blocks and poolings, and a boosted classifier.

Static images, T steps: the stem's convolution and norm run once, everything behind them once per
step on one step's values, so that batch statistics are those of a step. A block fires behind each
norm; a residual block adds its shortcut in front of the second neuron, so that its output is
binary. The classifier's spikes are averaged over groups of ten.

Source: Na et al., "AutoSNN: Towards Energy-Efficient Spiking Neural Networks", ICML 2022 (arXiv
2201.12738).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ... import checks, host
from ...arguments import checked
from ...layer.spiking import NeuronFactory, lif, new_neuron
from ...model.transformer.published import PublishedNames
from ..space import Architecture
from ..space.autosnn import CANDIDATES, POOL
from ..supernet import OneShot, Slot

__all__ = ["NAMES", "AutoSNN", "Sizes", "child", "supernet"]

#: outputs that are averaged for one class
BOOST = 10

NAMES = PublishedNames(
    "AutoSNN",
    (
        (r"^conv_stem\.", "stem."),
        (r"^spike_neuron_stem\.", "neuron."),
        (r"^layers\.", "slots."),
        (r"\.spike_neuron_(\d)\.", r".neuron\1."),
        (r"\.spike_neuron\.", ".neuron."),
        (r"\.blocks\.", ".candidates."),
        (r"^fc\.1\.", "classifier."),
        (r"^fc\.2\.", "neuron_out."),
    ),
)


class Sizes:
    """How wide a network of the space is.

    Args:
        width: channels of the first stage; the next have two and four times as many.
        channels: of every slot, in place of that.
        strides: of every slot.
        stem: channels of the stem.
        image_size: height and width of the input.
        T: number of steps.
        in_channels: 3 for images.
        num_classes: at least 2.
        global_pooling: whether the map is averaged before the classifier.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        width: int = 16,
        *,
        channels: Sequence[int] | None = None,
        strides: Sequence[int] = (1, 2, 1, 1, 2, 1, 1, 2),
        stem: int | None = None,
        image_size: int = 32,
        T: int = 8,
        in_channels: int = 3,
        num_classes: int = 10,
        global_pooling: bool = False,
    ):
        checks.integer("width", width, at_least=1)
        default = tuple(width * factor for factor in (1, 1, 2, 2, 2, 4, 4, 4))
        self.channels = default if channels is None else checks.shape("channels", channels)
        self.strides = checks.shape("strides", strides)
        if len(self.channels) != len(self.strides):
            raise ValueError(
                f"channels must have one entry per slot, {len(self.strides)}, got "
                f"{len(self.channels)}"
            )
        self.stem = checks.integer("stem", self.channels[0] if stem is None else stem, at_least=1)
        self.image_size = checks.integer("image_size", image_size, at_least=1)
        self.T = checks.integer("T", T, at_least=1)
        self.in_channels = checks.integer("in_channels", in_channels, at_least=1)
        self.num_classes = checks.integer("num_classes", num_classes, at_least=2)
        self.global_pooling = checks.flag("global_pooling", global_pooling)

    def slots(self) -> list[tuple[int, int, int]]:
        """Channels in and out and stride of every slot."""
        before = (self.stem, *self.channels[:-1])
        return list(zip(before, self.channels, self.strides, strict=True))


@checked
class AutoSNN(nn.Module):
    """A network with the given modules in its slots.

    Args:
        slots: a module per slot, see :func:`child` and :func:`supernet`.
        sizes: of the network.
        spiking_neuron: makes the neurons.

    Shapes:
        ``[N, C, H, W]`` to ``[T, N, classes]``: what fired in a step, averaged over ten outputs.

    Raises:
        ValueError: the input is no batch of images.
    """

    published = NAMES

    def __init__(self, slots: Sequence[nn.Module], sizes: Sizes, spiking_neuron: NeuronFactory):
        super().__init__()
        self.T = sizes.T
        self.stem = _conv_bn(sizes.in_channels, sizes.stem, 3)
        self.neuron = new_neuron(spiking_neuron)
        self.slots = nn.ModuleList(slots)
        side = sizes.image_size
        for stride in sizes.strides:
            side = -(-side // stride)
        self.pool = nn.AdaptiveAvgPool2d(1) if sizes.global_pooling else nn.Identity()
        self.neuron_pooled = new_neuron(spiking_neuron) if sizes.global_pooling else nn.Identity()
        features = sizes.channels[-1] * (1 if sizes.global_pooling else side * side)
        self.classifier = nn.Linear(features, BOOST * sizes.num_classes, bias=False)
        self.neuron_out = new_neuron(spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the classes' outputs fired in every step."""
        checks.tensor("x", x, dims=4)
        current = self.stem(x)
        return torch.stack([self._step(current) for _ in range(self.T)])

    def _step(self, current: torch.Tensor) -> torch.Tensor:
        x = self.neuron(current)
        for slot in self.slots:
            x = slot(x)
        x = self.neuron_pooled(self.pool(x)).flatten(1)
        return self.neuron_out(self.classifier(x)).unflatten(1, (-1, BOOST)).mean(2)


class ConvBlock(nn.Module):
    """Convolution, norm, neuron, twice (SCB), with a shortcut to the second neuron (SRB)."""

    def __init__(
        self,
        below: int,
        above: int,
        stride: int,
        spiking_neuron: NeuronFactory,
        kernel_size: int,
        residual: bool,
    ):
        super().__init__()
        self.conv1 = _conv(below, above, kernel_size, stride)
        self.bn1 = nn.BatchNorm2d(above)
        self.neuron1 = new_neuron(spiking_neuron)
        self.conv2 = _conv(above, above, kernel_size)
        self.bn2 = nn.BatchNorm2d(above)
        self.neuron2 = new_neuron(spiking_neuron)
        self.residual = residual
        if residual and (stride > 1 or below != above):
            self.downsample: nn.Module = _conv_bn(below, above, 1, stride)
        else:
            self.downsample = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.neuron1(self.bn1(self.conv1(x)))))
        return self.neuron2(y + self.downsample(x) if self.residual else y)


class Projection(nn.Module):
    """The skip between other widths: a 1 x 1 convolution, norm and neuron."""

    def __init__(self, below: int, above: int, spiking_neuron: NeuronFactory):
        super().__init__()
        self.conv = _conv(below, above, 1)
        self.bn = nn.BatchNorm2d(above)
        self.neuron = new_neuron(spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neuron(self.bn(self.conv(x)))


class FactorizedSkip(nn.Module):
    """The skip with stride 2: two 1 x 1 convolutions on the map and on the map one pixel on."""

    def __init__(self, below: int, above: int, spiking_neuron: NeuronFactory):
        super().__init__()
        self.conv_1 = _conv(below, above // 2, 1, 2)
        self.conv_2 = _conv(below, above - above // 2, 1, 2)
        self.bn = nn.BatchNorm2d(above)
        self.neuron = new_neuron(spiking_neuron)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = [self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])]
        return self.neuron(self.bn(torch.cat(halves, 1)))


@checked
def child(
    architecture: Architecture,
    sizes: Sizes | None = None,
    spiking_neuron: NeuronFactory | None = None,
) -> AutoSNN:
    """The network of an architecture, without the candidates that it has not.

    Args:
        architecture: of :func:`sj_ext.search.space.autosnn`.
        sizes: of the network; AutoSNN-16 for CIFAR by default.
        spiking_neuron: makes the neurons, by default parametric leaky ones.

    Shapes:
        that of :class:`AutoSNN`.

    Raises:
        ValueError: the architecture has another number of slots than the sizes.
    """
    sizes, neuron = sizes or Sizes(), spiking_neuron or parametric_lif()
    if len(architecture) != len(sizes.channels):
        raise ValueError(
            f"architecture must have {len(sizes.channels)} slots, as the sizes have, got "
            f"{len(architecture)}"
        )
    slots = [
        nn.MaxPool2d(2, 2) if gene == POOL else candidate(str(gene), *slot, neuron)
        for gene, slot in zip(architecture, sizes.slots(), strict=True)
    ]
    return AutoSNN(slots, sizes, neuron)


@checked
def supernet(
    pooled: Sequence[bool], sizes: Sizes | None = None, spiking_neuron: NeuronFactory | None = None
) -> OneShot:
    """All networks of a space in one, with weights of their own for every candidate.

    Args:
        pooled: whether each slot is a pooling.
        sizes: as :func:`child`.
        spiking_neuron: as :func:`child`.

    Shapes:
        that of :class:`AutoSNN`.

    Raises:
        ValueError: ``pooled`` has another length than the sizes.
    """
    sizes, neuron = sizes or Sizes(), spiking_neuron or parametric_lif()
    if len(pooled) != len(sizes.channels):
        raise ValueError(
            f"pooled must have {len(sizes.channels)} entries, as the sizes have, got {len(pooled)}"
        )
    slots = [
        nn.MaxPool2d(2, 2)
        if pool
        else Slot({name: candidate(name, *slot, neuron) for name in CANDIDATES})
        for pool, slot in zip(pooled, sizes.slots(), strict=True)
    ]
    return OneShot(AutoSNN(slots, sizes, neuron))


def candidate(
    name: str, below: int, above: int, stride: int, spiking_neuron: NeuronFactory
) -> nn.Module:
    """The block of that name between these widths."""
    if name == "skip":
        if stride > 1:
            return FactorizedSkip(below, above, spiking_neuron)
        return nn.Identity() if below == above else Projection(below, above, spiking_neuron)
    return ConvBlock(
        below, above, stride, spiking_neuron, int(name[-1]), residual=name.startswith("srb")
    )


def parametric_lif() -> NeuronFactory:
    """The paper's neuron: a learned time constant that starts at 2, ATan, detached hard reset."""
    return lif(2.0, host.surrogate.ATan(alpha=2.0), host.neuron.ParametricLIFNode)


def _conv(below: int, above: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(below, above, kernel_size, stride, kernel_size // 2, bias=False)


def _conv_bn(below: int, above: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(below, above, kernel_size, stride), nn.BatchNorm2d(above))
