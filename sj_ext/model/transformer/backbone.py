"""The one backbone that every spiking transformer here fills: stem, body, head, over T steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ... import checks, host
from ...arguments import checked
from ...layer.spiking import NeuronFactory, new_neuron
from ...parameters import no_weight_decay
from .published import PublishedNames

__all__ = [
    "Head",
    "SpikingTransformer",
    "initialize_linear",
    "plane",
    "pyramid",
    "stacked",
]


@checked
class SpikingTransformer(nn.Module, host.base.StepModule):
    r"""A spiking transformer: logits of each step from an image or from event frames.

    .. math::
        y[t] = \mathrm{head}(\mathrm{body}(\mathrm{stem}(x[t])))

    where only neurons carry anything from one step to the next; call ``functional.reset_net`` after
    each batch.

    Args:
        stem: module from the input to a map of tokens.
        body: the blocks, one module or several in a row.
        head: module from the map to logits.
        T: how many steps an image is shown for.
        in_channels: channels of the input, which is checked.
        published: how the public program names its weights, for :func:`load_published`.

    Shapes:
        In step mode ``'m'``, which a new network is in: ``[N, C, H, W]`` is repeated T times,
        ``[T', N, C, H, W]`` is taken as it is, for any T'; the output is ``[T', N, classes]``
        (``[1, N, classes]`` where a head joins the steps). In step mode ``'s'``, one step:
        ``[N, C, H, W]`` to ``[N, classes]``.

    Raises:
        TypeError: a part is no module.
        ValueError: ``T`` is below 1, the input has another number of axes or channels, or a layer
            is in another step mode than the network.
    """

    def __init__(
        self,
        stem: nn.Module,
        body: nn.Module,
        head: nn.Module,
        *,
        T: int = 4,
        in_channels: int = 3,
        published: PublishedNames | None = None,
    ):
        super().__init__()
        self.step_mode = "m"
        self.stem: nn.Module = checks.module("stem", stem)
        self.body: nn.Module = checks.module("body", body)
        self.head: nn.Module = checks.module("head", head)
        self.T = checks.integer("T", T, at_least=1)
        self.in_channels = checks.integer("in_channels", in_channels, at_least=1)
        self.published = published
        host.functional.set_step_mode(self, "m")

    def supported_step_mode(self) -> tuple[str, ...]:
        """``'s'`` and ``'m'``, or only ``'m'`` where a part sees all steps at once."""
        whole = any(isinstance(part, host.base.MultiStepModule) for part in self.modules())
        return ("m",) if whole else ("s", "m")

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits of every step; two of them in training with a distillation head."""
        return self.head(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head reads: the last map, ``[T, N, C, H, W]`` or ``[N, C, H, W]``."""
        self._check(x)
        if self.step_mode == "m" and x.dim() == 4:
            x = x.unsqueeze(0).expand(self.T, *x.shape)
        return self.body(self.stem(x))

    def no_weight_decay(self) -> set[str]:
        """See :func:`sj_ext.no_weight_decay`; timm's optimizer factory asks for it."""
        return no_weight_decay(self)

    def extra_repr(self) -> str:
        return f"T={self.T}, step_mode={self.step_mode}"

    def _check(self, x: torch.Tensor) -> None:
        checks.floating("x", x)
        ranks = {"s": (4,), "m": (4, 5)}[self.step_mode]
        if x.dim() not in ranks or x.shape[-3] != self.in_channels:
            layout = "[N, C, H, W]" + (" or [T, N, C, H, W]" if self.step_mode == "m" else "")
            raise ValueError(
                f"x must have shape {layout} with C = {self.in_channels} in step mode "
                f"{self.step_mode!r}, got {list(x.shape)}"
            )
        for name, module in self.named_modules():
            mode = getattr(module, "step_mode", self.step_mode)
            if mode != self.step_mode:
                raise ValueError(
                    f"step_mode must be one in the whole network: it is {self.step_mode!r}, and "
                    f"{mode!r} in {name}; use functional.set_step_mode(net, {self.step_mode!r})"
                )


@checked
class Head(nn.Module):
    r"""Classifier: mean over the tokens, an optional neuron, a linear map, all step by step.

    With ``distillation`` there is a second map beside it, which a teacher trains: the output is
    both logits in training and their mean in evaluation.

    Args:
        channels: C.
        num_classes: at least 1.
        spiking_neuron: makes a neuron in front of the linear map; None for none, so that the map
            reads real means.
        bias: of the linear map.
        distillation: whether there is a second linear map.

    Shapes:
        ``[T, N, C, H, W]`` to ``[T, N, classes]``, or without T in step mode ``'s'``; a pair of
        these in training with ``distillation``.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        spiking_neuron: NeuronFactory | None = None,
        *,
        bias: bool = True,
        distillation: bool = False,
    ):
        super().__init__()
        checks.sizes(channels=channels, num_classes=num_classes)
        self.neuron = None if spiking_neuron is None else new_neuron(spiking_neuron)
        self.linear = nn.Linear(channels, num_classes, bias=bias)
        self.distilled = (
            nn.Linear(channels, num_classes, bias=bias)
            if checks.flag("distillation", distillation)
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = x.mean((-2, -1))
        if self.neuron is not None:
            x = self.neuron(x)
        y = self.linear(x)
        if self.distilled is None:
            return y
        y_distilled = self.distilled(x)
        return (y, y_distilled) if self.training else (y + y_distilled) / 2


def stacked(
    stem: nn.Module,
    block: Callable[[int], nn.Module],
    head: nn.Module,
    *,
    depth: int,
    dim: int,
    mlp_ratio: float,
    T: int,
    in_channels: int,
    published: PublishedNames | None = None,
) -> SpikingTransformer:
    """A transformer of blocks that are all alike, with linear layers as the programs begin.

    Args:
        stem, head, T, in_channels, published: as :class:`SpikingTransformer`.
        block: makes a block from the number of hidden channels of its MLP.
        depth: number of blocks.
        dim: channels of the tokens.
        mlp_ratio: hidden channels, over ``dim``.
    """
    checks.sizes(dim=dim)
    hidden = int(dim * checks.number("mlp_ratio", mlp_ratio, above=0))
    blocks = [block(hidden) for _ in range(checks.integer("depth", depth, at_least=1))]
    model = SpikingTransformer(
        stem, nn.Sequential(*blocks), head, T=T, in_channels=in_channels, published=published
    )
    initialize_linear(model)
    return model


def pyramid(dim: int) -> tuple[int, int, int, int]:
    """Widths of a stem that doubles its channels up to ``dim``, which is a multiple of 8."""
    if checks.integer("dim", dim, at_least=8) % 8:
        raise ValueError(f"dim must be a multiple of 8, got {dim}")
    return dim // 8, dim // 4, dim // 2, dim


def plane(image_size: int | Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width in tokens of an image of that size, square if it is one number."""
    size = (image_size,) if isinstance(image_size, int) else image_size
    sides = checks.shape("image_size", size)
    if len(sides) > 2:
        raise ValueError(f"image_size must be one or two sizes, got {tuple(sides)}")
    if any(side % stride for side in sides):
        raise ValueError(f"image_size must be a multiple of {stride}, got {image_size}")
    return sides[0] // stride, sides[-1] // stride


def initialize_linear(model: nn.Module, std: float = 0.02) -> None:
    """Linear layers as the programs begin: truncated normal weights, biases of 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
