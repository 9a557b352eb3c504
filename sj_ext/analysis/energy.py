"""Synaptic operations of a network on an input, and the energy that they stand for.

A convolution or linear layer that reads spikes adds a weight for every spike and every output that
the spike reaches: accumulations (AC). One that reads real values multiplies as well (MAC). The
operations of a spiking layer therefore follow its input's firing rate. Counted exactly, spike by
spike, so that borders and uneven firing make no error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["LayerOperations", "SynapticOperations", "synaptic_operations"]

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., torch.Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


class LayerOperations(NamedTuple):
    """What one layer did."""

    #: the layer's name in the network
    name: str
    #: mean of the input's elements that are not 0: the firing rate, where the input is binary
    rate: float
    #: multiply-accumulates of a dense computation
    dense: int
    #: accumulations: weights other than 0 added for spikes
    acs: int
    #: multiply-accumulates that remain, because the input is not binary
    macs: int


@dataclass(frozen=True)
class SynapticOperations:
    """What a network did with an input, layer by layer; totals over the whole input."""

    #: one entry per layer and call, in the order in which they ran
    layers: tuple[LayerOperations, ...]

    @property
    def acs(self) -> int:
        """Accumulations of all layers."""
        return sum(layer.acs for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def dense(self) -> int:
        """Multiply-accumulates that the same layers would need for real-valued inputs."""
        return sum(layer.dense for layer in self.layers)

    def energy(self, ac: float = 0.9, mac: float = 4.6) -> float:
        """Energy in picojoules.

        Args:
            ac: picojoules of an accumulation. The default and that of ``mac`` are those of 32-bit
                floating point in 45 nm (Horowitz, "Computing's energy problem", ISSCC 2014).
            mac: picojoules of a multiply-accumulate.
        """
        return self.acs * ac + self.macs * mac


def synaptic_operations(model: nn.Module, x: torch.Tensor) -> SynapticOperations:
    """Count the synaptic operations of ``model(x)``.

    Convolutions and linear layers count, wherever they stand in the network; a layer that several
    places or steps share counts each time it runs. A weight that is 0, in a pruned layer, costs
    nothing. Biases, neurons, normalisation and pooling do
    not: they cost one operation per neuron, where a synapse costs its fan-in. On SpikingJelly 2.x
    the accumulations equal those of its ``op_counter.ACCounter`` for these layers.

    Args:
        model: any network of PyTorch and SpikingJelly layers, in evaluation mode. For T-RevSNN,
            give the re-parameterised network: composed, all its layers after the stem add only.
        x: one batch as the network takes it. Divide the result by its size for the cost of one
            sample.

    Raises:
        RuntimeError: ``model`` is in training mode, or no layer that counts has run.
    """
    if model.training:
        raise RuntimeError(
            "synaptic_operations needs a model in evaluation mode: call model.eval() first"
        )
    layers: list[LayerOperations] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            layers.append(_operations(name, module, args[0], output))

        return hook

    counted: tuple[type[nn.Module], ...] = (*_CONVOLUTIONS, nn.Linear)
    handles = [
        module.register_forward_hook(look(name))
        for name, module in model.named_modules()
        if isinstance(module, counted)
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not layers:
        raise RuntimeError("model has run no convolution and no linear layer")
    return SynapticOperations(tuple(layers))


def _operations(name: str, module: Any, x: torch.Tensor, output: torch.Tensor) -> LayerOperations:
    dense = output.numel() * module.weight[0].numel()
    rate = float((x != 0).double().mean())
    kept = (module.weight != 0).double()
    if bool(((x == 0) | (x == 1)).all()):
        return LayerOperations(name, rate, dense, acs=_additions(module, x, kept), macs=0)
    return LayerOperations(name, rate, dense, acs=0, macs=round(dense * float(kept.mean())))


def _additions(module: Any, spikes: torch.Tensor, kept: torch.Tensor) -> int:
    """Triples of a spike, an output that it reaches and a weight between them that is not 0."""
    spikes = spikes.double()
    if isinstance(module, nn.Linear):
        return int((spikes.flatten(0, -2).sum(0) * kept.sum(0)).sum())
    convolve = next(f for kind, f in _CONVOLUTIONS.items() if isinstance(module, kind))
    dims = len(module.kernel_size)
    if spikes.dim() == dims + 3:  # [T, N, C, *] of a SpikingJelly layer in multi-step mode
        spikes = spikes.flatten(0, 1)
    padding = module.padding
    if module.padding_mode != "zeros":
        mode = module.padding_mode
        spikes = F.pad(spikes, module._reversed_padding_repeated_twice, mode=mode)
        padding = 0
    # One output channel per group, whose weights count the output channels that a spike reaches.
    reached = kept.unflatten(0, (module.groups, -1)).sum(1)
    counts = convolve(spikes, reached, None, module.stride, padding, module.dilation, module.groups)
    return int(counts.sum())
