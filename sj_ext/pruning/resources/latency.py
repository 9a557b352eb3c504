"""Per-layer times, measured on the user's device for the format that is exported."""

from __future__ import annotations

import json
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import checks
from ...arguments import checked
from ..layers import TRANSPOSED, weight_sites
from .base import LayerInfo, Resource
from .operations import layer_positions, samples_of

__all__ = ["Latency", "LatencyTable", "device_name", "latency", "measure_latency"]


def device_name(device: torch.device | str = "cpu") -> str:
    """The name under which latency tables know a device of this machine.

    Args:
        device: as PyTorch names it.

    Raises:
        TypeError, ValueError: PyTorch does not know such a device.
        RuntimeError: CUDA is not there.
    """
    device = checks.device("device", device)
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{device.type}: {model}, {torch.get_num_threads()} threads"


@dataclass
class LatencyTable:
    """Seconds per layer at a few densities, for one device.

    Attributes:
        device: what :func:`device_name` returned where the table was measured.
        densities: rising, the last one 1 (the dense layer).
        seconds: per layer, one time per density.
        samples: how many samples the input held.
    """

    device: str
    densities: list[float]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    samples: int = 1

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(self.__dict__, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what :meth:`save` wrote."""
        return cls(**json.loads(Path(path).read_text()))


def _median_seconds(fn: Callable[[], Any], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first run warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        fn()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


@torch.no_grad()
def measure_latency(
    model: nn.Module,
    example_input: Any,
    *,
    densities: Sequence[float] = (0.01, 0.05, 0.1, 0.25, 0.5),
    repeats: int = 5,
) -> LatencyTable:
    """Time each layer's product with a sparse CSR weight on the device of ``example_input``.

    The format is the one that :func:`sj_ext.pruning.export_csr` writes: the weight as a matrix
    ``[out, in * kernel]``, times the unfolded input. At density 1 the dense product is timed. Where
    CSR is slower than dense the table says so; the interpolation never lets a sparser layer cost
    more than a denser one, since the dense product can be used instead.

    Args:
        model: the network; runs once to learn how often each weight is used.
        example_input: one batch as the network takes it.
        densities: rising, within (0, 1).
        repeats: runs per time; the median counts.

    Raises:
        ValueError: a density is not within (0, 1), or a layer does not run.
    """
    points = sorted(densities)
    if not points or points[0] <= 0 or points[-1] >= 1:
        raise ValueError(f"densities must lie within (0, 1), got {list(densities)}")
    device = next(model.parameters()).device
    table = LatencyTable(device_name(device), [*points, 1.0])
    uses = layer_positions(model, example_input)
    table.samples = samples_of(model, example_input)
    for name, site in weight_sites(model).items():
        module = site.module
        weight = getattr(module, site.attribute).detach()
        rows = weight.flatten(1) if not isinstance(module, TRANSPOSED) else weight.flatten(1).t()
        groups = getattr(module, "groups", 1)
        x = torch.rand(rows.shape[1], max(1, uses[name] // groups), device=device, dtype=rows.dtype)
        times = []
        for density in points:
            kept = torch.rand_like(rows) < density
            sparse = (torch.ones_like(rows) * kept).to_sparse_csr()
            times.append(_median_seconds(partial(torch.matmul, sparse, x), device, repeats))
        dense = rows.contiguous()
        times.append(_median_seconds(partial(torch.matmul, dense, x), device, repeats))
        table.seconds[name] = times
    return table


class Latency(Resource):
    name = "latency"
    unit = "s"
    arguments = ("latency_table",)

    def __init__(self, latency_table: LatencyTable | None = None):
        if latency_table is None:
            raise ValueError(
                "resource 'latency' needs latency_table, as measure_latency(model, example_input) "
                "returns it"
            )
        if not isinstance(latency_table, LatencyTable):
            raise TypeError(f"latency_table must be a LatencyTable or None, got {latency_table!r}")
        super().__init__()
        self.table = latency_table

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        super().bind(model, layers)
        here = device_name(next(model.parameters()).device)
        if self.table.device != here:
            raise ValueError(
                f"the latency table was measured on {self.table.device!r} and the model is on "
                f"{here!r}: measure it here with measure_latency(model, example_input)"
            )
        missing = [layer.name for layer in layers if layer.name not in self.table.seconds]
        if missing:
            raise ValueError(f"the latency table lacks the layers {missing}")
        # a sparser layer can always be run as the denser one: no point above a later one
        self._times = {}
        for name, times in self.table.seconds.items():
            best, rising = times[-1], []
            for seconds in reversed(times):
                best = min(best, seconds)
                rising.append(best)
            self._times[name] = rising[::-1]

    def amount(self) -> float:
        return self.total() / self.table.samples

    def cost(self, layer: LayerInfo, share: float) -> float:
        xs, ys = self.table.densities, self._times[layer.name]
        at = bisect_left(xs, share)
        if at == 0:  # in proportion from nothing to the first point
            return ys[0] * share / xs[0] if xs[0] else ys[0]
        low, high = xs[at - 1], xs[at]
        return ys[at - 1] + (ys[at] - ys[at - 1]) * (share - low) / (high - low)


@checked
def latency(table: LatencyTable) -> Resource:
    """Per-layer times, interpolated between densities.

    Args:
        table: what :func:`measure_latency` returned on this device.

    Raises:
        ValueError: from the pruner, where the table is of another device or lacks a layer.
    """
    return Latency(table)
