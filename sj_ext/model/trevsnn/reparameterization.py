"""Re-parameterisation of T-RevSNN for inference: what is left multiplies spikes by weights.

Standardisation and gain fold into the weight they act on, batch normalisation into the convolution
before it, the scale of a block into its last convolution, and the two maps of the last classifier
into one. Classifiers that only training uses are dropped. The decays stay: they act on potentials.

Between two spiking layers there is then one linear map whose input is binary. A depthwise and a
pointwise convolution side by side are such a map, since no spike lies between them; on request they
are composed into one dense convolution, so that every single convolution reads spikes and an
inference needs additions only.

Source: Hu et al., ICML 2024 (arXiv 2405.16466); composition of the pairs and the check are this
package's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from ...arguments import checked
from ...layer.scaled_ws import ScaledWSConv2d
from ...observe import at_rest, watching
from .blocks import BlockTail, SpikingBlock, effective
from .model import TRevSNN

__all__ = ["ComposedConv2d", "MapInput", "map_inputs", "reparameterize"]


@torch.no_grad()
@checked
def reparameterize(model: TRevSNN, *, compose: bool = False) -> TRevSNN:
    """A copy of a trained T-RevSNN for inference, with everything folded into plain convolutions.

    Args:
        model: left as it is. Its batch normalisation counts with its running statistics.
        compose: turn each depthwise and pointwise pair into one dense convolution as well, and
            classify before pooling. Every convolution after the stem then reads spikes; the dense
            kernels are k times k times as large as the pointwise ones.

    Returns:
        A network in evaluation mode with frozen parameters, ready for ``torch.export`` and ONNX,
        whose output is that of ``model`` in evaluation mode up to rounding. Like every re-ordering
        of a sum, rounding can move a potential across a threshold where it lies within it.

    Raises:
        TypeError: ``model`` is not a :class:`TRevSNN`.
        ValueError: ``model`` is re-parameterised already, or its parts have been exchanged for ones
            that this function does not know.
    """
    if not isinstance(model, TRevSNN):
        raise TypeError(f"model must be a TRevSNN, got {type(model).__name__}")
    if any(isinstance(m, ComposedConv2d) for m in model.modules()) or not any(
        isinstance(m, ScaledWSConv2d) for m in model.modules()
    ):
        raise ValueError("model is re-parameterised already")
    folded = copy.deepcopy(model).eval()
    folded.step_heads = nn.ModuleList()
    folded.stem = _fold_all(folded.stem)
    shared = _Shared(compose)
    for level in _levels(folded):
        for name in ("down", "up"):
            part = getattr(level, name)
            if isinstance(part, nn.Sequential):
                setattr(level, name, _fold_sequence(part))
        for block in level.blocks:
            _fold_block(block, shared)
    _fold_head(folded.head, compose)
    folded.cell.memory = "autograd"  # there is no backward pass to save memory for
    return folded.requires_grad_(False)


class MapInput(NamedTuple):
    """What a linear map of the network reads."""

    #: the map's name in the network
    name: str
    #: whether all its elements are 0 or 1
    binary: bool
    #: mean of the input: the firing rate, where it is binary
    rate: float


@checked
def map_inputs(model: TRevSNN, x: torch.Tensor) -> list[MapInput]:
    """What the linear maps after the stem read when ``model`` sees ``x``.

    The maps are those between two spiking layers: the convolutions between levels, the two halves
    of each block (a depthwise and a pointwise convolution, or one that they were composed to), and
    the classifier with the pooling beside it. In a composed network each map is one convolution,
    and these are all convolutions after the stem.

    Args:
        model: a T-RevSNN, re-parameterised or not, in evaluation mode.
        x: one batch as the network takes it, ``[N, 3, H, W]`` or ``[T, N, 2, H, W]``.

    Returns:
        One entry per map, in the order in which they run. The re-parameterised network is right if
        ``all(entry.binary for entry in map_inputs(model, x))``.

    Raises:
        RuntimeError: ``model`` is in training mode.
    """
    if model.training:
        raise RuntimeError("map_inputs needs a model in evaluation mode: call model.eval() first")
    seen: list[MapInput] = []
    names: dict[nn.Module, list[str]] = {}
    for name, module in _maps(model):  # a module that columns share runs once in each, in order
        names.setdefault(module, []).append(name)

    def look(names: list[str], module: nn.Module, spikes: torch.Tensor, y: torch.Tensor) -> None:
        binary = bool(((spikes == 0) | (spikes == 1)).all())
        seen.append(MapInput(names.pop(0), binary, float(spikes.mean())))

    with at_rest(model), watching(((names[module], module) for module in names), look):
        model(x)
    return seen


class ComposedConv2d(nn.Module):
    r"""A depthwise and a pointwise convolution as one dense convolution.

    .. math:: y = K * s + b(h, w)

    Where the pointwise one comes first, its bias meets the zeros that the depthwise one pads with,
    so the bias at the border differs from the one inside: b is a map, made once per resolution.

    Args:
        weight: K, ``[out, in, k, k]``.
        bias: the bias of the second convolution, ``[out]``.
        inner_bias: the bias of a pointwise convolution before a depthwise one, or None.
        depthwise: the weight of that depthwise one, ``[out, 1, k, k]``, or None.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        inner_bias: torch.Tensor | None = None,
        depthwise: torch.Tensor | None = None,
    ):
        super().__init__()
        out_channels, in_channels, kernel_size, _ = weight.shape
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        ).to(weight)
        self.conv.weight = nn.Parameter(weight.contiguous())
        self.bias = nn.Parameter(bias.clone())
        self.inner_bias = None if inner_bias is None else nn.Parameter(inner_bias.clone())
        self.depthwise = None if depthwise is None else nn.Parameter(depthwise.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self._bias_map(x.shape[-2:])

    def _bias_map(self, size: torch.Size) -> torch.Tensor:
        if self.inner_bias is None or self.depthwise is None:
            return self.bias.view(1, -1, 1, 1)
        channels, padding = len(self.bias), self.depthwise.shape[-1] // 2
        inner = self.inner_bias.view(1, -1, 1, 1).expand(1, channels, *size)
        return F.conv2d(inner, self.depthwise, self.bias, padding=padding, groups=channels)


M = TypeVar("M", bound=nn.Module)


class _Shared:
    """Folded convolutions of a tail that several blocks share, so that they go on sharing them."""

    def __init__(self, compose: bool):
        self.compose = compose
        self._made: dict[tuple[object, ...], Any] = {}

    def once(self, *key: object, make: Callable[[], M]) -> M:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _levels(model: TRevSNN) -> Iterator[Any]:
    columns: Any = model.cell.levels
    for column in columns:
        yield from column


def _maps(model: TRevSNN) -> Iterator[tuple[str, nn.Module]]:
    """The module of each linear map that reads its input, with a name."""
    columns: Any = model.cell.levels
    for step, column in enumerate(columns):
        for index, level in enumerate(column):
            name = f"step{step}.level{index}"
            if index:
                yield f"{name}.down", level.down
            if level.up is not None:
                yield f"{name}.up", level.up
            for number, block in enumerate(level.blocks):
                yield f"{name}.block{number}.first", block.dwconv
                yield f"{name}.block{number}.second", block.tail
    yield "head", model.head.pool if model.head.pool_first else model.head.classifier1


def _fold_conv(conv: nn.Module, norm: nn.BatchNorm2d | None = None) -> nn.Conv2d:
    """A plain convolution that does what ``conv`` and a batch normalisation behind it do."""
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"model has a {type(conv).__name__} where a convolution was expected")
    weight, bias = effective(conv)
    if norm is not None:
        if norm.running_var is None or norm.running_mean is None:
            raise ValueError("model has a batch normalisation without running statistics")
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias + scale * ((0 if bias is None else bias) - norm.running_mean)
        weight = weight * scale.view(-1, 1, 1, 1)
    return plain_conv(conv, weight, bias)


def plain_conv(like: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A convolution of the geometry of ``like`` with another weight and bias."""
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        like.kernel_size,
        like.stride,
        like.padding,
        like.dilation,
        like.groups,
        bias is not None,
        like.padding_mode,
    ).to(weight)
    conv.weight = nn.Parameter(weight.clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.clone())
    return conv.eval()


def _fold_all(module: nn.Module) -> nn.Module:
    """Standardised convolutions anywhere in a module, folded."""
    if isinstance(module, ScaledWSConv2d):
        return _fold_conv(module)
    for name, child in module.named_children():
        setattr(module, name, _fold_all(child))
    return module


def _fold_sequence(sequence: nn.Sequential) -> nn.Sequential:
    folded: list[nn.Module] = []
    for module in sequence:
        if isinstance(module, nn.BatchNorm2d):
            folded[-1] = _fold_conv(folded[-1], module)
        else:
            folded.append(_fold_conv(module) if isinstance(module, nn.Conv2d) else module)
    return nn.Sequential(*folded)


def _fold_block(module: nn.Module, shared: _Shared) -> None:
    if type(module) is not SpikingBlock or type(module.tail) is not BlockTail:
        raise ValueError(f"model has a {type(module).__name__} that this function does not know")
    block: Any = module  # its parts become plain convolutions
    first, second = _fold_conv(block.dwconv), _fold_conv(block.pwconv)
    tail: Any = block.tail
    gamma = block.gamma
    pointwise = shared.once(tail, "pointwise", make=lambda: _fold_conv(tail.pwconv))
    if gamma is None:
        depthwise = shared.once(tail, "depthwise", make=lambda: _fold_conv(tail.dwconv))
    else:
        weight, bias = effective(tail.dwconv)
        depthwise = plain_conv(tail.dwconv, weight * gamma.view(-1, 1, 1, 1), bias * gamma.view(-1))
    block.gamma = None
    if not shared.compose:
        block.dwconv, block.pwconv = first, second
        block.tail = BlockTail(pointwise, depthwise)
        return
    block.dwconv, block.pwconv = _depthwise_first(first, second), nn.Identity()
    if gamma is None:
        block.tail = shared.once(tail, "map", make=lambda: _pointwise_first(pointwise, depthwise))
    else:
        block.tail = _pointwise_first(pointwise, depthwise)


def _depthwise_first(depthwise: Any, pointwise: Any) -> ComposedConv2d:
    mix = pointwise.weight[:, :, 0, 0]
    weight = mix[:, :, None, None] * depthwise.weight[:, 0]
    return ComposedConv2d(weight, pointwise.bias + mix @ depthwise.bias)


def _pointwise_first(pointwise: Any, depthwise: Any) -> ComposedConv2d:
    weight = pointwise.weight * depthwise.weight
    return ComposedConv2d(weight, depthwise.bias, pointwise.bias, depthwise.weight)


def _fold_head(head: Any, compose: bool) -> None:
    first: Any = _fold_conv(head.classifier1)
    second: Any = _fold_conv(head.classifier2)
    mix = second.weight[:, :, 0, 0]
    weight = (mix @ first.weight[:, :, 0, 0])[:, :, None, None]
    head.classifier1 = plain_conv(first, weight, mix @ first.bias + second.bias)
    head.classifier2 = nn.Identity()
    head.pool_first = not compose
