"""What a network costs, per image: the figures that a search trades against accuracy."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from .. import checks, host
from ..analysis import synaptic_operations
from ..analysis.energy import additions, samples_in
from ..arguments import checked
from ..observe import at_rest, watching

__all__ = ["energy", "flops", "parameters", "spikes", "synops", "synops_penalty"]

WEIGHTINGS = ("events", "nonzero")

_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def parameters(model: nn.Module) -> int:
    """How many parameters a network has.

    Args:
        model: any network.

    Raises:
        TypeError: ``model`` is no module.
    """
    checks.module("model", model)
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, batch: torch.Tensor, *, samples: int | None = None) -> float:
    """Multiply-accumulates of one image if nothing were sparse, over all steps.

    Args:
        model: any network.
        batch: as the network takes it, ``[N, *]`` or, in multi-step mode, ``[T, N, *]``.
        samples: N. By default it is read from the output, as
            :func:`~sj_ext.analysis.synaptic_operations` reads it.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``samples`` is below 1, or not given for an output that is no tensor.
        RuntimeError: no convolution and no linear layer has run.
    """
    with _evaluated(model, batch):
        counted = synaptic_operations(model, batch, samples=samples)
    return counted.dense / counted.samples


def energy(model: nn.Module, batch: torch.Tensor, *, samples: int | None = None) -> float:
    """Energy of one image in picojoules: 0.9 an accumulation, 4.6 a multiply-accumulate (45 nm).

    Args:
        model: any network.
        batch: as the network takes it, ``[N, *]`` or, in multi-step mode, ``[T, N, *]``.
        samples: N. By default it is read from the output, as
            :func:`~sj_ext.analysis.synaptic_operations` reads it.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``samples`` is below 1, or not given for an output that is no tensor.
        RuntimeError: no convolution and no linear layer has run.
    """
    with _evaluated(model, batch):
        counted = synaptic_operations(model, batch, samples=samples)
    return counted.energy_per_sample()


@checked
def synops(
    model: nn.Module,
    batch: torch.Tensor,
    *,
    weighting: str = "events",
    samples: int | None = None,
) -> float:
    """Synaptic operations of one image: additions that its spikes cause in the layers behind them.

    A layer that reads other values than whole numbers, such as the one that reads the image,
    multiplies and counts nothing here.

    Args:
        model: any network.
        batch: as the network takes it, ``[N, *]`` or, in multi-step mode, ``[T, N, *]``.
        weighting: ``'events'`` counts a value of 2, of a sum of spikes, as two additions, as the
            papers do; ``'nonzero'`` as one.
        samples: N. By default it is read from the output, as
            :func:`~sj_ext.analysis.synaptic_operations` reads it.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``weighting`` is unknown; ``samples`` is below 1, or not given for an output
            that is no tensor.
    """
    checks.choice("weighting", weighting, WEIGHTINGS)
    total = 0

    def look(name: str, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal total
        if bool((x == x.round()).all()):
            events = x.abs() if weighting == "events" else (x != 0).to(x.dtype)
            total += additions(layer, events, (layer.weight != 0).double())  # type: ignore[union-attr]

    layers = {name: m for name, m in model.named_modules() if isinstance(m, _COUNTED)}
    with _evaluated(model, batch), watching(layers, look):
        y = model(batch)
    return total / _number(samples, model, batch, y)


@checked
def spikes(
    model: nn.Module,
    batch: torch.Tensor,
    *,
    include_pooling: bool = False,
    samples: int | None = None,
) -> float:
    """Spikes of one image, summed over neurons and steps.

    Args:
        model: any network.
        batch: as the network takes it, ``[N, *]`` or, in multi-step mode, ``[T, N, *]``.
        include_pooling: whether what leaves a pooling counts too, as AutoSNN's program has it.
        samples: N. By default it is read from the output, as
            :func:`~sj_ext.analysis.synaptic_operations` reads it.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``samples`` is below 1, or not given for an output that is no tensor.
    """
    kinds = (host.neuron.BaseNode, *_POOLING) if include_pooling else (host.neuron.BaseNode,)
    seen: list[torch.Tensor] = []

    def look(name: str, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        seen.append(y.sum(dtype=torch.float64))  # no copy to the host for every layer and step

    layers = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    with _evaluated(model, batch), watching(layers, look):
        y = model(batch)
    total = float(torch.stack(seen).sum()) if seen else 0.0
    return total / _number(samples, model, batch, y)


def synops_penalty(operations: torch.Tensor, samples: int, *, weight: float = 0.1) -> torch.Tensor:
    r"""The branchless supernet's term of the loss, :math:`w \cdot \mathrm{synops} / N / 10^9`.

    Args:
        operations: of the batch, as :meth:`~sj_ext.search.network.branchless.Branchless.counted`
            gives them, ``[]``; gradients go through them to spikes, kernels and thresholds.
        samples: N.
        weight: w.

    Raises:
        ValueError: ``samples`` is below 1, or ``weight`` below 0.
    """
    checks.tensor("operations", operations)
    weight = checks.number("weight", weight, at_least=0)
    return weight * operations / checks.integer("samples", samples, at_least=1) / 1e9


def _number(samples: int | None, model: nn.Module, batch: torch.Tensor, y: object) -> int:
    if samples is None:
        return samples_in(model, batch, y)
    return checks.integer("samples", samples, at_least=1)


def _evaluated(model: nn.Module, batch: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    checks.module("model", model)
    checks.tensor("batch", batch)
    return at_rest(model)
