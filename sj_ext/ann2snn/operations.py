"""Which nodes a rate code passes through: what is linear in its input, step by step.

The mean over time of a linear operation is the operation on the mean. Everything else must be an
activation, whose place a neuron takes, or a max pooling, which has rules of its own.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .graph import ACTIVATIONS

__all__ = ["pooling_of", "unsupported_nodes"]

#: layers that are linear, or affine in evaluation
_LINEAR_MODULES = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Fold,
    nn.Unfold,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
)
_LINEAR_FUNCTIONS = {
    operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub,
    operator.neg, torch.neg, operator.getitem, torch.cat, torch.concat, torch.stack, torch.flatten,
    torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.mean,
    torch.sum, torch.chunk, torch.split, torch.unbind, torch.movedim, torch.narrow,
    torch.conv1d, torch.conv2d, torch.conv3d, F.linear, torch._assert,
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.avg_pool1d, torch.adaptive_avg_pool1d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.interpolate, F.pad,
    F.pixel_shuffle, F.batch_norm,
}  # fmt: skip
_LINEAR_METHODS = {
    "add", "add_", "sub", "sub_", "neg", "flatten", "view", "reshape", "permute", "transpose",
    "squeeze", "unsqueeze", "mean", "sum", "chunk", "split", "unbind", "contiguous", "movedim",
    "narrow", "expand", "repeat", "to", "float", "double", "t", "clone", "type_as", "unflatten",
}  # fmt: skip
#: linear while one side does not depend on the input
_PRODUCTS = {
    operator.mul, operator.imul, torch.mul, operator.truediv, operator.itruediv, torch.div,
    "mul", "mul_", "div", "div_",
}  # fmt: skip
#: what tells a size, and what is done with sizes
_SIZES = {"size", "dim", "numel", builtins.getattr, builtins.len, "new_zeros", "new_ones"}
_POOLINGS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
_POOLING_CALLS: dict[Any, type[nn.Module]] = {
    torch.max_pool1d: nn.MaxPool1d,
    torch.max_pool2d: nn.MaxPool2d,
    torch.max_pool3d: nn.MaxPool3d,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    F.adaptive_max_pool3d: nn.AdaptiveMaxPool3d,
}


def pooling_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The max pooling that a node calls, as a module; ``None`` where it calls none."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return module if isinstance(module, _POOLINGS) else None
    if node.op == "call_function" and node.target in _POOLING_CALLS:
        return _POOLING_CALLS[node.target](*node.args[1:], **_but_input(node))
    return None


def _but_input(node: fx.Node) -> dict[str, Any]:
    return {name: value for name, value in node.kwargs.items() if name != "input"}


def unsupported_nodes(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Nodes of a prepared network that no rate passes through, and what each does."""
    data = _data_nodes(graph)
    for node in graph.graph.nodes:
        if node not in data or node.op in ("placeholder", "output", "get_attr"):
            continue
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if not isinstance(module, (*_LINEAR_MODULES, *ACTIVATIONS, *_POOLINGS)):
                yield node, type(module).__name__
        elif not _is_linear(node, data) and node.target not in _POOLING_CALLS:
            yield node, getattr(node.target, "__name__", str(node.target))


def _data_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose values depend on the input's values, not only on its sizes."""
    data: set[fx.Node] = set()
    for node in graph.graph.nodes:
        depends = any(source in data for source in node.all_input_nodes)
        if node.op == "placeholder" or (depends and node.target not in _SIZES):
            data.add(node)
    return data


def _is_linear(node: fx.Node, data: set[fx.Node]) -> bool:
    if node.target in _PRODUCTS:
        sides = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in data]
        divides = "div" in str(getattr(node.target, "__name__", node.target))
        return len(sides) == 1 and (not divides or node.args[0] in data)
    if node.op == "call_method":
        return node.target in _LINEAR_METHODS
    return node.target in _LINEAR_FUNCTIONS


def fix_for(what: str) -> str:
    """What a user can do about a node that is not supported."""
    name = what.lower()
    if any(part in name for part in ("sigmoid", "softmax", "gelu", "silu", "tanh", "elu")):
        return "train with a ReLU, a QuantizedClip or a LeakyReLU, or leave it out of the network"
    if "norm" in name:
        return "use a batch norm, which is folded"
    return "rewrite it with linear layers, additions, concatenation and ReLU"
