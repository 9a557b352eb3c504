"""Synaptic operations of a network on an input, and the energy that they stand for.

A convolution or linear layer that reads spikes adds a weight for every spike and every output that
the spike reaches (or subtracts it, for a spike of -1): accumulations (AC). One that reads real
values multiplies as well (MAC). The operations of a spiking layer therefore follow its input's
firing rate. Counted exactly, spike by spike, so that borders and uneven firing make no error. A
product of two activations, in an attention, adds where one of the two is spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .. import checks, host
from ..arguments import checked
from ..observe import at_rest, watching
from ..products import of_spikes, operations, watching_products

__all__ = ["LayerOperations", "SynapticOperations", "synaptic_operations"]

#: energy of an accumulation and a multiply-accumulate, in pJ, 45 nm (Horowitz 2014)
PJ_PER_AC = 0.9
PJ_PER_MAC = 4.6

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
    #: number of samples in the input
    samples: int = 1

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

    def energy(self, ac: float = PJ_PER_AC, mac: float = PJ_PER_MAC) -> float:
        """Energy of the whole input in picojoules.

        Args:
            ac: picojoules of an accumulation. The default and that of ``mac`` are those of 32-bit
                floating point in 45 nm (Horowitz, "Computing's energy problem", ISSCC 2014).
            mac: picojoules of a multiply-accumulate.

        Raises:
            TypeError: an energy is no number.
            ValueError: an energy is below 0.
        """
        ac = checks.number("ac", ac, at_least=0)
        return self.acs * ac + self.macs * checks.number("mac", mac, at_least=0)

    def energy_per_sample(self, ac: float = PJ_PER_AC, mac: float = PJ_PER_MAC) -> float:
        """Energy of one sample in picojoules: that of :meth:`energy`, divided by ``samples``.

        Args:
            ac: picojoules of an accumulation.
            mac: picojoules of a multiply-accumulate.

        Raises:
            TypeError: an energy is no number.
            ValueError: an energy is below 0.
        """
        return self.energy(ac, mac) / self.samples

    def __repr__(self) -> str:
        """A table: one line per layer and call, totals, and the energy of one sample."""
        rows = [("layer", "rate", "dense", "ACs", "MACs")]
        rows += [
            (name or "(network)", f"{rate:.1%}", f"{dense:,}", f"{acs:,}", f"{macs:,}")
            for name, rate, dense, acs, macs in self.layers
        ]
        rows.append(("total", "", f"{self.dense:,}", f"{self.acs:,}", f"{self.macs:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        rule = "-" * len(lines[0])
        each = f"{self.energy_per_sample():,.6g} pJ per sample ({self.samples} in the input)"
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], each])


@checked
def synaptic_operations(
    model: nn.Module, x: torch.Tensor, *, samples: int | None = None
) -> SynapticOperations:
    """Count the synaptic operations of ``model(x)``.

    Convolutions and linear layers count, wherever they stand in the network, and products of two
    activations, such as an attention's, under the name of the module that multiplies them; a layer
    that several places or steps share counts each time it runs. A weight that is 0, in a pruned
    layer, costs nothing. Biases, neurons, normalisation and pooling do not: they cost one operation
    per neuron, where a synapse costs its fan-in. On SpikingJelly 2.x the accumulations equal those
    of its ``op_counter.ACCounter`` for these layers.

    The network runs from reset, and is left with the state that it had: the same input gives the
    same figure each time.

    Args:
        model: any network of PyTorch and SpikingJelly layers, in evaluation mode. For T-RevSNN,
            give the re-parameterised network: composed, all its layers after the stem add only.
        x: one batch as the network takes it.
        samples: how many samples ``x`` holds. By default it is read from the output: the second
            axis where a network in multi-step mode returns ``[T, N, *]`` of three or more axes,
            else the first.

    Raises:
        RuntimeError: ``model`` is in training mode, or no layer that counts has run.
        TypeError: ``model`` is no module, or ``samples`` no integer.
        ValueError: ``samples`` is below 1, or not given for an output that is no tensor.
    """
    checks.module("model", model)
    if samples is not None:
        checks.integer("samples", samples, at_least=1)
    if model.training:
        raise RuntimeError(
            "synaptic_operations needs a model in evaluation mode: call model.eval() first"
        )
    layers: list[LayerOperations] = []
    counted: tuple[type[nn.Module], ...] = (*_CONVOLUTIONS, nn.Linear)
    named = {name: module for name, module in model.named_modules() if isinstance(module, counted)}
    with (
        at_rest(model),
        watching(named, lambda *seen: layers.append(_operations(*seen))),
        watching_products(model, lambda *seen: layers.append(_product(*seen))),
    ):
        y = model(x)
    if not layers:
        raise RuntimeError("model has run no convolution and no linear layer")
    return SynapticOperations(
        tuple(layers), samples_in(model, x, y) if samples is None else samples
    )


def samples_in(model: nn.Module, x: object, y: object) -> int:
    """How many samples there are in ``y``, what ``model`` makes of ``x``.

    It is a sequence where a module takes sequences, or where the network makes the steps itself.
    """
    if not isinstance(y, torch.Tensor) or not y.dim():
        raise ValueError("samples must be given where the network does not return a tensor [N, *]")
    multi_step = any(
        isinstance(module, host.base.StepModule) and module.step_mode == "m"
        for module in model.modules()
    )
    number = len(x) if isinstance(x, torch.Tensor) and x.dim() else None
    sequence = y.dim() > 2 and (multi_step or y.shape[0] != number == y.shape[1])
    return max(1, y.shape[1] if sequence else y.shape[0])


def _operations(name: str, module: Any, x: Any, output: torch.Tensor) -> LayerOperations:
    dense = output.numel() * module.weight[0].numel()
    rate = float((x != 0).double().mean())
    kept = (module.weight != 0).double()
    if bool(of_spikes(x)):
        return LayerOperations(name, rate, dense, acs=additions(module, x.abs(), kept), macs=0)
    return LayerOperations(name, rate, dense, acs=0, macs=round(dense * float(kept.mean())))


def _product(name: str, a: torch.Tensor, b: torch.Tensor) -> LayerOperations:
    """Additions where one matrix is spikes, each of one element of the other that is not 0."""
    dense, pairs, spikes = operations(a, b)
    side = b if bool(of_spikes(b)) and not bool(of_spikes(a)) else a
    rate, count = float((side != 0).double().mean()), round(float(pairs))
    acs, macs = (count, 0) if bool(spikes) else (0, count)
    return LayerOperations(name, rate, dense, acs=acs, macs=macs)


def additions(module: Any, spikes: torch.Tensor, kept: torch.Tensor) -> int:
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
