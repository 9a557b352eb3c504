"""Parts of T-RevSNN: the residual block, a level of one column, stems and classifier heads.

All of them see one step at a time, ``[N, C, H, W]``.

Source: Hu et al., "High-Performance Temporal Reversible Spiking Neural Networks with O(L) Training
Memory and O(1) Inference Cost", ICML 2024 (arXiv 2405.16466).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ...layer.scaled_ws import ScaledWSConv2d
from ...neuron.turn_off import TurnOffNode
from ...ops.windows import Window
from ...surrogate import Rect
from .block_op import Firing, spiking_block

__all__ = [
    "BlockTail",
    "EventStem",
    "ImageStem",
    "Level",
    "PooledHead",
    "SpikeHead",
    "SpikingBlock",
]


class StepConv(ScaledWSConv2d):
    """:class:`ScaledWSConv2d` of one step's input, whatever step mode the network is in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Conv2d.forward(self, x)


class BlockTail(nn.Module):
    """The second half of a block, pointwise 4C to C and depthwise: what columns may share."""

    def __init__(self, pwconv: nn.Conv2d, dwconv: nn.Conv2d):
        super().__init__()
        self.pwconv = pwconv
        self.dwconv = dwconv

    @classmethod
    def new(cls, channels: int, kernel_size: int, norm: str) -> BlockTail:
        """A tail for a block of so many channels."""
        pwconv = StepConv(4 * channels, channels, 1)
        return cls(pwconv, depthwise_conv(channels, kernel_size, norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dwconv(self.pwconv(x))


class SpikingBlock(nn.Module):
    r"""Residual block of two turn-off neurons with separable convolutions behind each.

    .. math::
        y = x + \gamma \, D_2(W_2 \Theta(W_1 D_1 \Theta(x - v_{th}) - v_{th}))

    with depthwise k x k convolutions D and pointwise ones W, C to 4C and back.

    In training, where nothing watches the parts from outside and the neurons have a rectangular
    window, the block runs as one autograd function that keeps bits in place of activations
    (:mod:`sj_ext.model.trevsnn.block_op`). Everywhere else (evaluation, forward hooks on a part,
    exchanged parts) it is the plain composition of its parts, with the same result up to the order
    in which the hidden channels are summed.

    Args:
        channels: C.
        kernel_size: k, odd.
        norm: ``'ws'`` standardises the depthwise weights as well, ``'bn'`` leaves them plain.
        gamma_init: first value of the scale :math:`\gamma`, one per channel; None for no scale.
        tail: a :class:`BlockTail` to use in place of a new one, shared with other blocks.

    Shapes:
        ``[N, C, H, W]`` in and out.
    """

    #: see :func:`sj_ext.parameter_groups`
    no_weight_decay = frozenset({"gamma"})
    gamma: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        norm: str,
        *,
        gamma_init: float | None = None,
        tail: BlockTail | None = None,
    ):
        super().__init__()
        self.neuron1 = TurnOffNode(0.5, Rect())
        self.dwconv = depthwise_conv(channels, kernel_size, norm)
        self.pwconv = StepConv(channels, 4 * channels, 1)
        self.neuron2 = TurnOffNode(0.5, Rect())
        self.tail = BlockTail.new(channels, kernel_size, norm) if tail is None else tail
        scale = None if gamma_init is None else torch.full((1, channels, 1, 1), float(gamma_init))
        self.register_parameter("gamma", None if scale is None else nn.Parameter(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        firing = self._firing() if self.training else None
        if firing is not None and not watched(self) and self._standard():
            return self._as_one_function(x, firing)
        y = self.pwconv(self.dwconv(self.neuron1(x)))
        y = self.tail(self.neuron2(y))
        return x + (y if self.gamma is None else self.gamma * y)

    def _firing(self) -> tuple[Firing, Firing] | None:
        """The neurons, if both are turn-off neurons with a rectangular window."""
        firing = []
        for node in (self.neuron1, self.neuron2):
            window = Window.of(node.surrogate_function) if type(node) is TurnOffNode else None
            if window is None:
                return None
            firing.append(Firing(node.v_threshold, window))
        return firing[0], firing[1]

    def _standard(self) -> bool:
        """Whether the convolutions are those that this class made: a user may exchange parts."""
        return (
            type(self.tail) is BlockTail
            and all(type(conv) is StepConv for conv in (self.pwconv, self.tail.pwconv))
            and all(type(conv) in (nn.Conv2d, StepConv) for conv in (self.dwconv, self.tail.dwconv))
        )

    def _as_one_function(self, x: torch.Tensor, firing: tuple[Firing, Firing]) -> torch.Tensor:
        depthwise = [effective(conv) for conv in (self.dwconv, self.tail.dwconv)]
        if self.gamma is not None:  # the gradient of gamma then needs no activation
            weight, bias = depthwise[1]
            depthwise[1] = weight * self.gamma.view(-1, 1, 1, 1), bias * self.gamma.view(-1)
        pointwise = [
            (conv.weight, conv.gain, conv.bias, conv.standard)
            for conv in (self.pwconv, self.tail.pwconv)
        ]
        pairs = (depthwise[0], depthwise[1]), (pointwise[0], pointwise[1])
        return spiking_block(x, *pairs, firing)


class Level(nn.Module):
    """One level of one column: ``blocks(down(below) + up(above))``, contract of TemporalReversible.

    Args:
        down: module for the spikes of the level below (or the encoded input), or None for identity.
        up: module for the spikes of the level above at the step before, or None where there are
            none.
        blocks: modules that follow the sum.
    """

    def __init__(self, down: nn.Module | None, up: nn.Module | None, blocks: Iterable[nn.Module]):
        super().__init__()
        self.down = nn.Identity() if down is None else down
        self.up = up
        self.blocks = nn.Sequential(*blocks)

    def forward(self, below: torch.Tensor, above: torch.Tensor | None = None) -> torch.Tensor:
        x = self.down(below)
        if above is not None and self.up is not None:
            up = self.up(above)
            if up.shape != x.shape:
                raise ValueError(
                    "height and width of the input must be a multiple of the network's stride: "
                    f"the levels below and above give {list(x.shape)} and {list(up.shape)}"
                )
            x = x + up
        return self.blocks(x)


def resample(
    in_channels: int,
    out_channels: int,
    norm: str,
    *,
    kernel_size: int = 1,
    stride: int = 1,
    up: bool = False,
) -> nn.Sequential:
    """Convolution of spikes between two levels, normalised; with ``up``, nearest x 2 behind it."""
    geometry: dict[str, Any] = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": kernel_size // 2,
    }
    if norm == "bn":
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, bias=False, **geometry),
            nn.BatchNorm2d(out_channels),
        ]
    else:
        layers = [StepConv(in_channels, out_channels, **geometry)]
    if up:
        layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
    return nn.Sequential(*layers)


class ImageStem(nn.Sequential):
    """The encoder of static images: 7x7 and 3x3, both of stride 2. Real values in and out."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int):
        super().__init__(
            StepConv(in_channels, hidden, 7, stride=2, padding=3),
            StepConv(hidden, out_channels, 3, stride=2, padding=1),
        )


class EventStem(nn.Module):
    """The encoder of event frames: one 3x3 convolution per step. ``[T, N, C, H, W]`` in and out."""

    def __init__(self, in_channels: int, out_channels: int, num_steps: int):
        super().__init__()
        self.steps = nn.ModuleList(
            StepConv(in_channels, out_channels, 3, padding=1) for _ in range(num_steps)
        )

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        return torch.stack([conv(x) for conv, x in zip(self.steps, x_seq, strict=True)])


class PooledHead(nn.Module):
    """Classifier of potentials, after a step that only training looks at: pool, pointwise."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.classifier = StepConv(channels, num_classes, 1)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, classes]`` from pooled potentials ``[N, C]``."""
        return self.classifier(pooled[..., None, None]).flatten(1)


class SpikeHead(nn.Module):
    """Classifier of the last step: turn-off, pool, two pointwise maps."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.neuron = TurnOffNode(0.5, Rect())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier1 = StepConv(channels, num_classes, 1)
        self.classifier2 = StepConv(num_classes, num_classes, 1)
        #: pooling and the classifiers commute; behind it, the first classifier reads spikes
        self.pool_first = True

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, classes]`` from potentials ``[N, C, H, W]``."""
        pair = self.pool, self.classifier1
        first, second = pair if self.pool_first else reversed(pair)
        return self.classifier2(second(first(self.neuron(u)))).flatten(1)


def depthwise_conv(channels: int, kernel_size: int, norm: str) -> nn.Conv2d:
    conv = StepConv if norm == "ws" else nn.Conv2d
    return conv(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


def effective(conv: nn.Conv2d) -> tuple[torch.Tensor, Any]:
    """Weight and bias that a convolution multiplies with and adds."""
    weight = conv.effective_weight() if isinstance(conv, ScaledWSConv2d) else conv.weight
    return weight, conv.bias


def watched(module: nn.Module) -> bool:
    """Whether a part of ``module`` has a hook, which must see that part's own input and output."""
    parts: Sequence[nn.Module] = list(module.modules())[1:]
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in parts
    )
