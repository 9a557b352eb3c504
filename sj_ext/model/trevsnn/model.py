r"""T-RevSNN: a spiking network that runs once over T narrow columns, one column per time step.

The image is encoded once. Step t runs column t, four levels of decreasing resolution whose last
neurons, the key neurons, are the only ones with a memory; they carry it to the next column.
Training undoes the steps instead of keeping them (:class:`sj_ext.layer.TemporalReversible`), and
inference costs what one pass of the T columns together costs.

Source: Hu et al., "High-Performance Temporal Reversible Spiking Neural Networks with O(L) Training
Memory and O(1) Inference Cost", ICML 2024 (arXiv 2405.16466).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ... import checks, host
from ...arguments import checked
from ...inference import gradient_wanted
from ...layer import ScaledWSConv2d, TemporalReversible
from ...neuron import TurnOffNode
from ...parameters import no_weight_decay
from ...surrogate import ClosedRect, Rect
from .blocks import (
    BlockTail,
    EventStem,
    ImageStem,
    Level,
    PooledHead,
    SpikeHead,
    SpikingBlock,
    resample,
)

__all__ = ["TRevSNN", "trevsnn_dvs", "trevsnn_small", "trevsnn_tiny"]

_WINDOWS = {"closed": ClosedRect, "open": Rect}


@checked
class TRevSNN(nn.Module, host.base.MultiStepModule):
    """The T-RevSNN classifier for static images or event frames.

    A static image is encoded once; every step has a classifier of its own for training. Event
    frames are encoded one per step and classified after the last.

    Args:
        channels: channels of the four levels, in each column.
        num_classes: at least 2.
        num_steps: T, the number of columns.
        kernel_size: of the depthwise convolutions, odd.
        in_channels: channels of the input; by default 3 for images and 2 for events.
        encode: for static images, how the steps share the stem's output. ``'group'`` (the paper):
            the stem makes T groups of channels, one per step. ``'repeat'`` (the paper's program):
            every step gets the same channels. Events have a stem per step, so it does not matter.
        norm: ``'ws'`` (the paper): every convolution standardises its weight, and each block has a
            scale that starts at 0. ``'bn'`` (the paper's program): batch normalisation between
            levels, plain depthwise convolutions, and a scale in each first block only, which
            starts at 1.
        memory: ``'reversible'`` or ``'autograd'``, see :class:`~sj_ext.layer.TemporalReversible`.
        events: the input is a sequence of event frames.
        stem_channels: channels that the stem of a static image makes; by default what ``encode``
            needs, T times the first level's or the first level's.
        every_step: for events, classify after every step in training, for losses over the steps
            (TET); static images do so anyway.
        init: first values of the convolutions. ``'torch'``: PyTorch's own. ``'published'`` (the
            paper's program): weights from a normal distribution of standard deviation 0.02, biases
            0.
        eps_in: where weight standardisation adds its 1e-6, see
            :class:`~sj_ext.layer.ScaledWSConv2d`; by default as the source of ``norm`` has it,
            ``'sum'`` with ``'ws'`` and ``'variance'`` with ``'bn'``. Weights that were trained with
            one of them give other outputs with the other.
        momentum: of the running statistics with ``norm='bn'``,
            ``running = (1 - momentum) running + momentum batch``, once per step and forward pass.
            The paper's program moves them twice by 0.1 (its backward pass runs the forward pass
            again), which is ``momentum=0.19``.
        window: of every neuron's gradient, 1 for potentials from 0 to 1. ``'closed'`` (the paper's
            program) has the two ends inside, where potentials lie whose inputs are all 0;
            ``'open'`` has not.
        recompute: whether a level is run again when it is undone, or one answer per level, as
            :class:`~sj_ext.layer.TemporalReversible` takes it: False for less time and more memory.

    Shapes:
        input ``[N, 3, H, W]``, or ``[T, N, 2, H, W]`` for events; H and W multiples of 16 (4 for
        events). In training the output is the logits after each step, ``[T, N, classes]``, as the
        losses of :mod:`sj_ext.functional` take them (events: ``[1, N, classes]``, or all steps with
        ``every_step``). In evaluation it is the logits of the last step, ``[N, classes]``.

    The network starts every forward pass from rest and leaves no state behind, so calling
    ``functional.reset_net`` between batches changes nothing.

    Raises:
        ValueError: an argument or the shape of the input is out of range; the message names it.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 1000,
        num_steps: int = 4,
        *,
        kernel_size: int = 3,
        in_channels: int | None = None,
        encode: str = "group",
        norm: str = "ws",
        memory: str = "reversible",
        events: bool = False,
        stem_channels: int | None = None,
        every_step: bool = False,
        init: str = "torch",
        eps_in: str | None = None,
        momentum: float = 0.1,
        window: str = "closed",
        recompute: bool | Sequence[bool] = True,
    ):
        super().__init__()
        _check(channels, num_classes, num_steps, kernel_size, encode, norm)
        checks.choice("init", init, ("torch", "published"))
        checks.choice("window", window, tuple(_WINDOWS))
        momentum = checks.number("momentum", momentum, at_least=0, at_most=1)
        self.channels = tuple(channels)
        self.num_classes, self.num_steps = num_classes, num_steps
        self.events, self.encode, self.norm = events, encode, norm
        self.every_step = checks.flag("every_step", every_step)
        self.in_channels = (2 if events else 3) if in_channels is None else in_channels
        self.step_mode = "m"

        first = self.channels[0]
        if events:
            self.stem: nn.Module = EventStem(self.in_channels, first, num_steps)
        else:
            width = _stem_channels(stem_channels, first, num_steps, encode)
            self.stem = ImageStem(self.in_channels, first, width)
        self.cell = TemporalReversible(
            _columns(self.channels, num_steps, kernel_size, norm),
            [[torch.full((1, c, 1, 1), 0.5) for c in self.channels] for _ in range(num_steps)],
            v_threshold=0.5,
            surrogate_function=_WINDOWS[window](),
            memory=memory,
            recompute=recompute,
        )
        self.cell.step_mode = "m"
        last = self.channels[-1]
        self.step_heads = nn.ModuleList(
            PooledHead(last, num_classes) for _ in range(0 if events else num_steps - 1)
        )
        self.head = SpikeHead(last, num_classes)
        self.eps_in = ("variance" if norm == "bn" else "sum") if eps_in is None else eps_in
        self._set_up_parts(self.eps_in, momentum, window, published_init=init == "published")

    def _set_up_parts(
        self, eps_in: str, momentum: float, window: str, *, published_init: bool
    ) -> None:
        """What holds for all parts alike."""
        for module in self.modules():
            if isinstance(module, TurnOffNode):
                module.surrogate_function = _WINDOWS[window]()
            if isinstance(module, ScaledWSConv2d):
                module.set_eps(1e-6, eps_in)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
            if published_init and isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def supported_step_mode(self) -> tuple[str, ...]:
        """Only ``'m'``: a forward pass is a whole sequence, one column per step."""
        return ("m",)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits after each step in training, of the last step in evaluation."""
        return self.step_logits(x) if self.training else self._final(self.potentials(x)[-1])

    def no_weight_decay(self) -> set[str]:
        """See :func:`sj_ext.no_weight_decay`; timm's optimizer factory asks for it."""
        return no_weight_decay(self)

    def step_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits after each step, ``[T, N, classes]``.

        For events they are of the last step, ``[1, N, classes]``, unless ``every_step`` is set.

        Raises:
            RuntimeError: the classifiers of the steps before the last have been removed.
        """
        if not self.events and len(self.step_heads) != self.num_steps - 1:
            raise RuntimeError(
                "step_logits needs the classifiers of every step, which re-parameterisation removes"
            )
        u_seq = self.potentials(x)
        logits = []
        if self.events and self.every_step:
            logits = [self._final(u) for u in u_seq[:-1]]
        if self.step_heads:
            pooled = u_seq[:-1].mean((-2, -1))
            logits = [head(p) for head, p in zip(self.step_heads, pooled, strict=True)]
        return torch.stack([*logits, self._final(u_seq[-1])])

    def potentials(self, x: torch.Tensor) -> torch.Tensor:
        """Potentials of the top level's key neurons, ``[T, N, C, H, W]``."""
        x_seq = self.encoded(x)
        self.cell.reset()
        u_seq = self.cell(x_seq)
        self.cell.reset()
        return u_seq

    def encoded(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The input of level 0 at each step: T tensors ``[N, C_0, H, W]``, or one of T of them."""
        self._check_input(x)
        reversible = self.cell.memory == "reversible"
        if reversible and gradient_wanted(x, *self.stem.parameters()):
            # The stem's inner activations are as large as all that the cell holds: made again.
            y = checkpoint(self.stem, x, use_reentrant=False, preserve_rng_state=False)
        else:
            y = self.stem(x)
        if self.events:
            return y
        if self.encode == "repeat":
            return [y] * self.num_steps  # one tensor T times, whose gradient is one tensor as well
        return y.unflatten(1, (self.num_steps, -1)).transpose(0, 1)

    def _final(self, u: torch.Tensor) -> torch.Tensor:
        return self.head(u / self.num_steps if self.events else u)

    def _check_input(self, x: torch.Tensor) -> None:
        checks.floating("x", x)
        rank, stride = (5, 4) if self.events else (4, 16)
        names = "[T, N, C, H, W]" if self.events else "[N, C, H, W]"
        if x.dim() != rank or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x must have shape {names} with C = {self.in_channels}, got {list(x.shape)}"
            )
        if self.events and x.shape[0] != self.num_steps:
            raise ValueError(f"x must have {self.num_steps} steps, got {x.shape[0]}")
        if x.shape[-1] % stride or x.shape[-2] % stride:
            raise ValueError(
                f"height and width of x must be multiples of {stride}, got {list(x.shape[-2:])}"
            )


@checked
def trevsnn_tiny(
    num_classes: int = 1000,
    num_steps: int = 4,
    *,
    kernel_size: int = 3,
    encode: str = "group",
    norm: str = "ws",
    memory: str = "reversible",
    recompute: bool | Sequence[bool] = True,
) -> TRevSNN:
    """T-RevSNN tiny: levels of 64, 128, 256 and 384 channels.

    The arguments of :class:`TRevSNN`.

    Shapes:
        ``[N, 3, H, W]`` to ``[T, N, classes]`` in training and ``[N, classes]`` in evaluation.

    Raises:
        ValueError: as :class:`TRevSNN`.
    """
    return TRevSNN(
        (64, 128, 256, 384),
        num_classes,
        num_steps,
        kernel_size=kernel_size,
        encode=encode,
        norm=norm,
        memory=memory,
        recompute=recompute,
    )


@checked
def trevsnn_small(
    num_classes: int = 1000,
    num_steps: int = 4,
    *,
    kernel_size: int = 5,
    encode: str = "group",
    norm: str = "ws",
    memory: str = "reversible",
    recompute: bool | Sequence[bool] = True,
) -> TRevSNN:
    """T-RevSNN small: levels of 96, 192, 384 and 512 channels.

    The arguments of :class:`TRevSNN`.

    Shapes:
        ``[N, 3, H, W]`` to ``[T, N, classes]`` in training and ``[N, classes]`` in evaluation.

    Raises:
        ValueError: as :class:`TRevSNN`.
    """
    return TRevSNN(
        (96, 192, 384, 512),
        num_classes,
        num_steps,
        kernel_size=kernel_size,
        encode=encode,
        norm=norm,
        memory=memory,
        recompute=recompute,
    )


@checked
def trevsnn_dvs(
    num_classes: int = 10,
    num_steps: int = 8,
    *,
    kernel_size: int = 3,
    in_channels: int = 2,
    norm: str = "bn",
    memory: str = "reversible",
    recompute: bool | Sequence[bool] = True,
) -> TRevSNN:
    """T-RevSNN for event frames: levels of 32, 64, 128 and 256 channels.

    The arguments of :class:`TRevSNN`.

    Shapes:
        ``[T, N, 2, H, W]`` to ``[1, N, classes]`` in training and ``[N, classes]`` in evaluation.

    Raises:
        ValueError: as :class:`TRevSNN`.
    """
    return TRevSNN(
        (32, 64, 128, 256),
        num_classes,
        num_steps,
        kernel_size=kernel_size,
        in_channels=in_channels,
        norm=norm,
        memory=memory,
        events=True,
        recompute=recompute,
    )


def _columns(
    channels: Sequence[int], num_steps: int, kernel_size: int, norm: str
) -> list[list[Level]]:
    # The second half of each level's second block is one for all columns.
    tails = [BlockTail.new(c, kernel_size, norm) for c in channels]
    gammas = (0.0, 0.0) if norm == "ws" else (1.0, None)

    def level(step: int, index: int) -> Level:
        c = channels[index]
        down = up = None
        if index:
            kernel, stride = (1, 1) if index == 3 else (3, 2)
            down = resample(channels[index - 1], c, norm, kernel_size=kernel, stride=stride)
        if step and index < 3:
            up = resample(channels[index + 1], c, norm, up=index < 2)
        first = SpikingBlock(c, kernel_size, norm, gamma_init=gammas[0])
        second = SpikingBlock(c, kernel_size, norm, gamma_init=gammas[1], tail=tails[index])
        return Level(down, up, (first, second))

    return [[level(step, index) for index in range(4)] for step in range(num_steps)]


def _stem_channels(stem_channels: int | None, first: int, num_steps: int, encode: str) -> int:
    groups = num_steps if encode == "group" else 1
    width = groups * first if stem_channels is None else stem_channels
    if width % groups:
        raise ValueError(
            f"stem_channels must be a multiple of num_steps with encode='group', so that every step"
            f" gets a group of its own: got stem_channels={width}, num_steps={num_steps}"
        )
    if width // groups != first:
        raise ValueError(
            f"stem_channels must give {first} channels (the first level's) to each step: got "
            f"stem_channels={width}, which gives {width // groups} with encode={encode!r}"
        )
    return width


def _check(
    channels: Sequence[int],
    num_classes: int,
    num_steps: int,
    kernel_size: int,
    encode: str,
    norm: str,
) -> None:
    if len(channels) != 4 or any(not isinstance(c, int) or c < 1 for c in channels):
        raise ValueError(f"channels must be four positive integers, got {channels!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps!r}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size!r}")
    if norm == "ws" and kernel_size == 1:
        raise ValueError("kernel_size must be at least 3 with norm='ws', got 1")
    checks.choice("encode", encode, ("group", "repeat"))
    checks.choice("norm", norm, ("ws", "bn"))
