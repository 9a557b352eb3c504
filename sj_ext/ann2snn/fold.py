"""Scales folded into weights: unit spikes, thresholds of 1, and plain layers between them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from .. import checks, host
from .graph import ADDITIONS, free_name, put_submodule
from .observe import sites
from .site import CountMaxPool, Scaler, _Merge, _Split

__all__ = ["fold_scales"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
#: layers that a factor per channel goes through, as if it were not there
_PASSED = (
    nn.Identity,
    nn.Flatten,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    CountMaxPool,
    _Merge,
    _Split,
)


def fold_scales(snn: nn.Module) -> fx.GraphModule:
    r"""A copy whose layers have the scales in their weights: for hardware, or for exchange formats.

    With the thresholds :math:`\theta_l` and gains :math:`g_l`,

    .. math::
        W_l \leftarrow \frac{g_l}{\theta_l} W_l \theta_{l-1}, \qquad
        b_l \leftarrow \frac{g_l}{\theta_l} b_l + \delta_l

    so that neurons of threshold 1 send unit spikes; constant currents go into the biases. Outputs
    are equal to rounding. Where no weight can take a scale (the shortcut of a residual sum, a layer
    that is used twice, one threshold per neuron before a convolution), a :class:`Scaler` stays.

    Args:
        snn: a converted network, ``[N, *]`` or ``[T, N, *]`` as its step mode says.

    Returns:
        The copy.

    Raises:
        TypeError: ``snn`` is no graph module.
        ValueError: it has no spiking layer of a conversion.
    """
    graph = copy.deepcopy(checks.module("snn", snn, fx.GraphModule))
    host.functional.reset_net(graph)
    folding = _Folding(graph)
    names = list(sites(graph))
    for name in names:
        folding.before(name)
    for name in names:
        folding.after(name)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    host.structure_changed(graph)
    return graph


class _Folding:
    """The folding of one graph."""

    def __init__(self, graph: fx.GraphModule):
        self.module, self.graph = graph, graph.graph

    def before(self, name: str) -> None:
        """Move a site's first scale towards the input."""
        node = self._node(f"{name}.scaler0")
        site: Any = self.module.get_submodule(name)
        factor = site.scaler0.scale
        alone = self._weights_of(node.args[0])
        source = self._push_back(node.args[0], node, factor)
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)
        shift = getattr(site.if_node, "shift", None)
        if alone is not None and shift is not None and _fits(alone, shift, out=True):
            _add_bias(alone, _per_channel(shift))
            site.if_node.shift = torch.zeros_like(shift).sum()

    def after(self, name: str) -> None:
        """Move a site's last scale towards the output."""
        node = self._node(f"{name}.scaler1")
        site: Any = self.module.get_submodule(name)
        factor = site.scaler1.scale
        spikes = node.args[0]
        users = list(node.users)
        node.replace_all_uses_with(spikes)
        self.graph.erase_node(node)
        for user in users:
            self._push_on(spikes, user, factor)
        kept = nn.Module()
        kept.add_module("if_node", site.if_node)
        put_submodule(self.module, name, kept)

    def _node(self, target: str) -> Any:
        return next(node for node in self.graph.nodes if node.target == target)

    def _called(self, node: Any) -> Any:
        return self.module.get_submodule(node.target) if node.op == "call_module" else None

    def _own_weights(self, node: Any) -> Any:
        """The layer with weights that a node calls, if no other node does."""
        module = self._called(node)
        calls = sum(other.target == node.target for other in self.graph.nodes)
        return module if isinstance(module, _WEIGHTED) and calls == 1 else None

    def _weights_of(self, node: Any) -> Any:
        """The layer with weights that a value comes from, through splits and merges only."""
        while isinstance(self._called(node), _Merge | _Split) and len(node.users) == 1:
            node = node.args[0]
        return self._own_weights(node) if len(node.users) == 1 else None

    def _push_back(self, node: Any, user: Any, factor: torch.Tensor) -> Any:
        """What gives the value of ``node`` times ``factor`` to ``user``."""
        if len(node.users) == 1:
            weights = self._own_weights(node)
            if weights is not None and _fits(weights, factor, out=True):
                _scale(weights, _per_channel(factor), out=True)
                return node
            passes = isinstance(self._called(node), _PASSED)
            if passes and not isinstance(self._called(node), nn.Flatten):
                node.replace_input_with(node.args[0], self._push_back(node.args[0], node, factor))
                return node
            if node.target in ADDITIONS and all(isinstance(arg, fx.Node) for arg in node.args):
                node.args = tuple(self._push_back(arg, node, factor) for arg in node.args)
                return node
        return self._scaler(node, user, factor)

    def _push_on(self, node: Any, user: Any, factor: torch.Tensor) -> None:
        """Let ``user`` have ``node`` times ``factor``, moved on as far as it goes."""
        module = self._called(user)
        weights = self._own_weights(user)
        if weights is not None and _fits(weights, factor, out=False):
            _scale(weights, _per_channel(factor), out=False)
        elif isinstance(module, _PASSED):
            for following in list(user.users):
                self._push_on(user, following, factor)
        elif isinstance(module, Scaler) and user.args[0] is node:
            module.scale = module.scale * factor
        else:
            user.replace_input_with(node, self._scaler(node, user, factor))

    def _scaler(self, node: Any, user: Any, factor: torch.Tensor) -> Any:
        name = free_name(self.module, f"{node.name}_scale")
        put_submodule(self.module, name, Scaler(factor))
        with self.graph.inserting_before(user):
            return self.graph.call_module(name, (node,))


def _per_channel(factor: torch.Tensor) -> torch.Tensor:
    return factor.reshape(-1)


def _fits(layer: Any, factor: torch.Tensor, out: bool) -> bool:
    """Whether a factor is one number or one per channel, which the layer's weights can take."""
    if factor.numel() == 1:
        return True
    if factor.numel() != factor.shape[0]:
        return False
    if isinstance(layer, nn.Linear):
        if out:
            return factor.dim() == 1 and factor.numel() == layer.out_features
        return layer.in_features % factor.numel() == 0
    if isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups > 1:
        return False
    return factor.dim() > 1 and factor.numel() == (layer.out_channels if out else layer.in_channels)


def _scale(layer: Any, factor: torch.Tensor, out: bool) -> None:
    weight = layer.weight
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    with torch.no_grad():
        if factor.numel() == 1:
            shaped = factor
        elif out:
            lead, trail = ([1], weight.dim() - 2) if transposed else ([], weight.dim() - 1)
            shaped = factor.view(*lead, -1, *[1] * trail)
        elif isinstance(layer, nn.Linear):  # features of one channel stand together
            shaped = factor.repeat_interleave(layer.in_features // factor.numel())
        elif transposed:
            shaped = factor.view(-1, *[1] * (weight.dim() - 1))
        else:
            groups = factor.view(layer.groups, -1)
            shaped = groups.repeat_interleave(layer.out_channels // layer.groups, 0)
            shaped = shaped.view(*shaped.shape, *[1] * (weight.dim() - 2))
        layer.weight = nn.Parameter(weight * shaped)
        if out and layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias * factor)


def _add_bias(layer: Any, value: torch.Tensor) -> None:
    count = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    bias = layer.weight.new_zeros(count) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter(bias + value.to(bias))
