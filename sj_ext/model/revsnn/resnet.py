"""RevSResNet: a spiking residual network whose stages are reversible sequences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ... import checks, host
from ...arguments import checked
from ...layer.conv_bn import ConvBN
from ...layer.mlp import SpikingMLP
from ...layer.reversible_sequence import ReversibleSequence
from ...layer.spiking import NeuronFactory, lif, new_neuron
from ..transformer.backbone import Head
from ..transformer.published import PublishedNames
from ..transformer.sized import sized

__all__ = [
    "NAMES",
    "RevSResNet",
    "residual_part",
    "revsresnet",
    "revsresnet21",
    "revsresnet24_dvs",
    "revsresnet37",
    "revsresnet109",
]

#: stages that the rules below know; the public networks have four
_STAGES = range(1, 10)

NAMES = PublishedNames(
    "RevSResNet",
    (
        (r"^conv1\.", "stem.conv."),
        (r"^bn1\.", "stem.bn."),
        (r"^fc\.", "head.linear."),
        (r"reversible_blocks\.(\d+)\.(f|g)_block\.conv(\d)\.0\.", r"blocks.\1.\2.fc\3.conv."),
        (r"reversible_blocks\.(\d+)\.(f|g)_block\.conv(\d)\.1\.", r"blocks.\1.\2.fc\3.bn."),
        *((rf"^layer{i}\.", f"stages.{i - 1}.") for i in _STAGES),
        *((rf"^ds{i}\.1\.1\.", f"transitions.{i - 1}.2.conv.") for i in _STAGES),
        *((rf"^ds{i}\.1\.2\.", f"transitions.{i - 1}.2.bn.") for i in _STAGES),
    ),
)


@checked
class RevSResNet(nn.Module):
    r"""Stem, reversible stages, and between them neuron, average pooling and 1 x 1 convolution.

    The F and G of every block are neuron, 3 x 3 convolution, norm, twice. The stem runs once on an
    image, whose map every step then gets; event frames have a stem with stride 2 and a pooling.

    Args:
        num_classes: at least 1.
        T: how many steps an image is shown for.
        spiking_neuron: makes the neurons, see :mod:`sj_ext.layer.spiking`; by default
            integrate-and-fire neurons with hard reset.
        channels: P of each stage, whose map has 2 P channels, half of them in each stream.
        depths: blocks of each stage.
        in_channels: 3 for images, 2 for events.
        events: whether the input is event frames.
        memory: of the stages, see :class:`~sj_ext.layer.ReversibleSequence`.

    Shapes:
        An image ``[N, C, H, W]`` or frames ``[T', N, C, H, W]`` to logits ``[T', N, classes]``; an
        image is shown for T steps.

    Raises:
        ValueError: a size is out of range, ``channels`` and ``depths`` differ in length, or the
            input has another shape.
    """

    published = NAMES

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 4,
        spiking_neuron: NeuronFactory | None = None,
        *,
        channels: Sequence[int] = (64, 128, 256, 448),
        depths: Sequence[int] = (1, 1, 1, 1),
        in_channels: int = 3,
        events: bool = False,
        memory: str = "reversible",
    ):
        super().__init__()
        channels, depths = checks.shape("channels", channels), checks.shape("depths", depths)
        if len(channels) != len(depths) or not channels:
            raise ValueError(
                f"depths must have one entry per stage in channels, got {len(depths)} for "
                f"{len(channels)} stages"
            )
        self.T = checks.integer("T", T, at_least=1)
        self.in_channels = checks.integer("in_channels", in_channels, at_least=1)
        neuron = _integrate_and_fire() if spiking_neuron is None else spiking_neuron
        self.stem = ConvBN(
            in_channels, 2 * channels[0], 3, 2 if checks.flag("events", events) else 1
        )
        self.pool = host.layer.AvgPool2d(3, 2, 1) if events else nn.Identity()
        self.stages = nn.ModuleList(
            ReversibleSequence(
                [(residual_part(p, neuron), residual_part(p, neuron)) for _ in range(depth)],
                memory=memory,
            )
            for p, depth in zip(channels, depths, strict=True)
        )
        self.transitions = nn.ModuleList(
            nn.Sequential(
                new_neuron(neuron), host.layer.AvgPool2d(3, 2, 1), ConvBN(2 * below, 2 * above)
            )
            for below, above in itertools.pairwise(channels)
        )
        self.neuron = new_neuron(neuron)
        self.head = Head(2 * channels[-1], num_classes)
        host.functional.set_step_mode(self, "m")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every step."""
        checks.floating("x", x)
        if x.dim() not in (4, 5) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x must have shape [N, C, H, W] or [T, N, C, H, W] with C = {self.in_channels}, "
                f"got {list(x.shape)}"
            )
        image = x.dim() == 4
        x = self.pool(self.stem(x.unsqueeze(0) if image else x))
        x = self.stages[0](x.expand(self.T, *x.shape[1:]) if image else x)
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            x = stage(transition(x))
        return self.head(self.neuron(x))


def residual_part(channels: int, spiking_neuron: NeuronFactory) -> nn.Module:
    """The F or G of a block: neuron, 3 x 3 convolution, norm, twice."""
    return SpikingMLP(channels, channels, spiking_neuron, bias=False, kernel_size=3)


def _integrate_and_fire() -> NeuronFactory:
    return partial(
        host.neuron.IFNode, detach_reset=True, surrogate_function=host.surrogate.ATan(alpha=2.0)
    )


@checked
def revsresnet(
    num_classes: int = 10, T: int = 4, spiking_neuron: NeuronFactory | None = None, **sizes: Any
) -> RevSResNet:
    """RevSResNet of any size; the arguments of :class:`RevSResNet`.

    Shapes:
        those of :class:`RevSResNet`.

    Raises:
        ValueError: as :class:`RevSResNet`.
    """
    return RevSResNet(num_classes, T, spiking_neuron, **sizes)


revsresnet21 = sized(revsresnet, "revsresnet21", "RevSResNet21 for CIFAR", num_classes=10)
revsresnet37 = sized(
    revsresnet, "revsresnet37", "RevSResNet37 for CIFAR", num_classes=10, depths=(1, 2, 3, 2)
)
revsresnet109 = sized(
    revsresnet, "revsresnet109", "RevSResNet109 for CIFAR", num_classes=10, depths=(2, 4, 16, 4)
)
revsresnet24_dvs = sized(
    revsresnet,
    "revsresnet24_dvs",
    "RevSResNet24 for event frames, with leaky neurons of time constant 1.5",
    num_classes=10,
    T=10,
    spiking_neuron=lif(1.5),
    channels=(16, 32, 48),
    depths=(1, 2, 2),
    in_channels=2,
    events=True,
)
