"""Looking at a converted network: per layer, and by the number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from .data import Batches
from .graph import evaluating, prepare
from .observe import single_steps, sites, watch_activations, watch_steps
from .site import SpikingSite
from .two_spike import latency, window_of

__all__ = ["LayerReport", "Report", "evaluate", "report"]

#: a rate from which a unit counts as saturated, and to which as silent
_FULL = 1.0 - 1e-6


@dataclass
class LayerReport:
    """What one spiking layer is and does."""

    #: where it stands
    name: str
    #: mean threshold, in units of the activation
    threshold: float
    #: mean initial potential, as a share of the threshold
    v_init: float
    #: mean gain of the input current
    gain: float
    #: mean number of spikes per step and unit, negative ones subtracted; with data only
    rate: float | None = None
    #: share of units and samples that fire at every step; with data only
    saturated: float | None = None
    #: share of units and samples that never fire; with data only
    silent: float | None = None
    #: mean square of the difference to the activation by number of steps; with data and ``ann``
    error: dict[int, float] = field(default_factory=dict)


@dataclass
class Report:
    """All layers of a converted network; printing it gives a table."""

    #: one entry a layer, in the order of the network
    layers: list[LayerReport]

    def __str__(self) -> str:
        steps = sorted({t for layer in self.layers for t in layer.error})
        head = ["layer", "threshold", "v0", "gain", "rate", "saturated", "silent"]
        rows = [head + [f"error T={t}" for t in steps]]
        for layer in self.layers:
            told = (layer.rate, layer.saturated, layer.silent, *map(layer.error.get, steps))
            rows.append(
                [layer.name, f"{layer.threshold:.4g}", f"{layer.v_init:.3g}", f"{layer.gain:.3g}"]
                + ["-" if value is None else f"{value:.3g}" for value in told]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


@checked
def report(
    snn: nn.Module,
    data: Any = None,
    ann: nn.Module | None = None,
    T: int | Sequence[int] = (8, 32),
) -> Report:
    """Thresholds, initial potentials and gains; with data also what the layers do.

    A layer that is mostly saturated or silent is where a conversion loses accuracy.

    Args:
        snn: a converted network.
        data: inputs, as for a recipe; ``None`` for what needs no run.
        ann: the trained network, to compare each layer with its activation.
        T: numbers of steps; rates are those of the largest.

    Returns:
        The report; ``print`` shows a table.

    Raises:
        TypeError: ``data`` of another kind.
        ValueError: ``snn`` has no spiking layer of a conversion, or ``ann`` other activations.
    """
    layers = sites(snn)
    steps = _checked_steps(T, snn) if data is not None else []
    entries = {name: _told(name, site) for name, site in layers.items()}
    if data is None:
        return Report(list(entries.values()))
    device = next(iter(layers.values())).threshold.device
    batches = Batches(data, device)
    wanted: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    if ann is not None:
        graph = prepare(ann)
        missing = [name for name in layers if name not in dict(graph.named_modules())]
        if missing:
            raise ValueError(f"ann: has no activation {missing[0]!r}, which snn was made from")
        watch_activations(graph, batches.inputs(), {n: w.append for n, w in wanted.items()})
    for name, site in layers.items():
        _run(snn, name, site, batches, steps, wanted[name], entries[name])
    return Report(list(entries.values()))


@checked
def evaluate(
    snn: nn.Module,
    loader: Any,
    T: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    metric: Callable[[Any, Any], Any] | None = None,
    reference: nn.Module | None = None,
) -> dict[int, float]:
    """How good the mean output is after each number of steps, in one run.

    A network of :class:`~sj_ext.ann2snn.TwoSpikeNode` runs for its
    :func:`~sj_ext.ann2snn.latency` first, and the mean is that of the steps after it.

    Args:
        snn: a converted network, or any stateful one; it is reset before and after.
        loader: batches of input and label, as a recipe takes them.
        T: numbers of steps.
        metric: from the mean output and the batch's label (or the output of ``reference``) to a
            number for the batch; batches are averaged by their size. The default is the accuracy,
            or the largest absolute difference to ``reference``.
        reference: a network whose output takes the label's place, such as the trained one.

    Returns:
        The metric by number of steps.

    Raises:
        TypeError: ``loader`` of another kind.
        ValueError: no labels where they are needed, or ``T`` out of range or, for a network of
            :class:`~sj_ext.ann2snn.TwoSpikeNode`, no multiple of its window.
    """
    steps = _checked_steps(T, snn)
    parameter = next(snn.parameters(), None)
    batches = Batches(loader, "cpu" if parameter is None else parameter.device)
    largest = metric is None and reference is not None
    if metric is None:
        metric = _largest_difference if reference is not None else _accuracy
    totals, count = dict.fromkeys(steps, 0.0), 0
    with single_steps(snn):
        pairs: Any = batches if reference is not None else batches.labelled("evaluate")
        for x, label in pairs:
            target = label if reference is None else _output(reference, x)
            host.functional.reset_net(snn)
            total: Any = None
            for _ in range(latency(snn)):
                snn(x)
            for step in range(1, steps[-1] + 1):
                total = _added(total, snn(x))
                if step in totals:
                    value = float(metric(_scaled(total, 1.0 / step), target))
                    if largest:
                        totals[step] = max(totals[step], value)
                    else:
                        totals[step] += value * len(x)
            count += len(x)
    return totals if largest else {step: total / count for step, total in totals.items()}


def _checked_steps(T: int | Sequence[int], snn: nn.Module) -> list[int]:
    steps = [T] if isinstance(T, int) else list(T)
    if not steps:
        raise ValueError("T must have at least one number of steps, got none")
    window = window_of(snn)
    for step in steps:
        if checks.integer("T", step, at_least=1) % window:
            raise ValueError(
                f"T must be whole windows of {window} steps of this network, got {step}"
            )
    return sorted({checks.integer("T", t, at_least=1) for t in steps})


def _accuracy(output: torch.Tensor, label: torch.Tensor) -> float:
    return float((output.argmax(1) == label).double().mean())


def _largest_difference(output: torch.Tensor, target: torch.Tensor) -> float:
    return float((output - target).abs().max())


def _output(net: nn.Module, x: torch.Tensor) -> Any:
    with evaluating(net):
        return net(x)


def _added(total: Any, output: Any) -> Any:
    """Sum of outputs of one structure: a tensor, or tuples, lists and dicts of them."""
    if total is None:
        return output
    if isinstance(output, dict):
        return {key: _added(total[key], value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        return type(output)(map(_added, total, output))
    return total + output


def _scaled(total: Any, factor: float) -> Any:
    if isinstance(total, dict):
        return {key: _scaled(value, factor) for key, value in total.items()}
    if isinstance(total, tuple | list):
        return type(total)(_scaled(value, factor) for value in total)
    return total * factor


def _told(name: str, site: SpikingSite) -> LayerReport:
    v_init = torch.as_tensor(getattr(site.if_node, "v_init", 0.0)).double().mean()
    return LayerReport(name, float(site.threshold.mean()), float(v_init), float(site.gain.mean()))


def _run(
    snn: nn.Module,
    name: str,
    site: SpikingSite,
    batches: Batches,
    steps: list[int],
    wanted: list[torch.Tensor],
    entry: LayerReport,
) -> None:
    units, spikes, full, silent = 0, 0.0, 0, 0
    errors = dict.fromkeys(steps, 0.0)
    after = latency(snn)
    for number, x in enumerate(batches.inputs()):
        total: list[torch.Tensor] = []

        def see(step: int, _: Any, spike: Any, total: list[Any] = total, n: int = number) -> None:
            step += 1 - after
            if step < 1:
                return
            total[:] = [spike.clone() if not total else total[0] + spike]
            if step in errors and wanted:
                mean = total[0] * site.threshold / step
                errors[step] += float((mean - wanted[n]).square().sum())

        watch_steps(snn, x, after + steps[-1], site.if_node, see)
        rate = total[0] / steps[-1]
        units += rate.numel()
        spikes += float(rate.sum())
        full += int((rate >= _FULL).sum())
        silent += int((rate == 0).sum())
    entry.rate, entry.saturated, entry.silent = spikes / units, full / units, silent / units
    if wanted:
        entry.error = {step: error / units for step, error in errors.items()}
