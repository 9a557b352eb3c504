r"""What a network costs, as a share of what the dense network costs.

A resource adds up over layers. With the kept share :math:`d_l` of layer :math:`l`,

.. math::
    R = \frac{\sum_l c_l(d_l)}{\sum_l c_l(1)}

so that the dense network is 1. Layers that are left dense count with :math:`d_l = 1`.

A new resource is a subclass of :class:`Resource` that defines :meth:`Resource.cost`, or a function
``cost(layer, share)`` given to :class:`Resource`.
"""

from __future__ import annotations

import json
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..observe import at_rest, watching
from .layers import TRANSPOSED, weight_layers
from .masks import parameter_of

__all__ = [
    "LatencyTable",
    "LayerInfo",
    "Resource",
    "device_name",
    "energy",
    "flops",
    "latency",
    "layer_positions",
    "measure_latency",
    "params",
    "resource",
    "synops",
]

#: energy of one addition and of one multiplication with addition, in pJ, 45 nm (Horowitz 2014)
PJ_PER_ADDITION = 0.9
PJ_PER_MAC = 4.6


@dataclass
class LayerInfo:
    """What a resource may know about a layer.

    Attributes:
        name: the layer's name in the model.
        module: the layer.
        weights: number of weights, dense.
        pruned: False where the layer is left dense.
    """

    name: str
    module: nn.Module
    weights: int
    pruned: bool = True


class Resource:
    """A cost that adds up over layers.

    Args:
        name: how the resource is called in reports.
        cost: ``cost(layer: LayerInfo, share: float) -> float``, never falling as the kept share
            grows; None where a subclass overrides :meth:`cost`.

    Raises:
        NotImplementedError: :meth:`cost` is called and is defined in neither way.
    """

    name = "resource"

    def __init__(
        self, name: str | None = None, cost: Callable[[LayerInfo, float], float] | None = None
    ):
        self.name = name or type(self).name
        self._cost = cost
        self.layers: list[LayerInfo] = []

    # ---- to override --------------------------------------------------------------------------

    def cost(self, layer: LayerInfo, share: float) -> float:
        """What ``layer`` costs with ``share`` of its weights kept; units are the resource's own."""
        if self._cost is None:
            raise NotImplementedError(f"{type(self).__name__} must define cost(layer, share)")
        return self._cost(layer, share)

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        """Called once by the pruner: look at the model, measure, or raise."""
        self.layers = list(layers)

    @property
    def ready(self) -> bool:
        """False until what has to be measured while training has been measured."""
        return True

    def freeze(self, frozen: bool) -> None:
        """Measurements stop while masks are fixed, so that a met budget stays met."""

    def update(self) -> None:
        """Called before each step of compression: take over what was measured since the last."""

    def close(self) -> None:
        """Called when the pruner has finished: take hooks off."""

    def state_dict(self) -> dict[str, Any]:
        """What has been measured."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""

    # ---- what the pruner asks -----------------------------------------------------------------

    def total(self) -> float:
        """The dense network's cost."""
        return sum(self.cost(layer, 1.0) for layer in self.layers)

    def __call__(self, kept: Sequence[int]) -> float:
        """R of a network with ``kept`` weights in each layer."""
        total = self.total()
        if total <= 0:
            raise ValueError(
                f"resource {self.name!r} of the dense network must be above 0, got {total}"
            )
        return (
            sum(
                self.cost(layer, n / layer.weights)
                for layer, n in zip(self.layers, kept, strict=True)
            )
            / total
        )

    def slope(self, index: int, kept: int) -> float:
        """dR/d(kept share of layer ``index``), by a central difference of a hundredth."""
        layer = self.layers[index]
        share = kept / layer.weights
        low, high = max(0.0, share - 0.005), min(1.0, share + 0.005)
        return (self.cost(layer, high) - self.cost(layer, low)) / (high - low) / self.total()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class _Linear(Resource):
    """Each weight of a layer costs the same."""

    def per_weight(self, layer: LayerInfo) -> float:
        raise NotImplementedError

    def cost(self, layer: LayerInfo, share: float) -> float:
        return self.per_weight(layer) * layer.weights * share

    def slope(self, index: int, kept: int) -> float:
        return self.cost(self.layers[index], 1.0) / self.total()


class _Params(_Linear):
    name = "params"

    def per_weight(self, layer: LayerInfo) -> float:
        return 1.0

    def __call__(self, kept: Sequence[int]) -> float:
        return sum(kept) / sum(layer.weights for layer in self.layers)


def positions(module: Any, x: torch.Tensor, out: torch.Tensor) -> int:
    """How often one weight of ``module`` is used to make ``out`` from ``x``."""
    if isinstance(module, nn.Linear):
        return out.numel() // module.out_features
    if isinstance(module, TRANSPOSED):
        return x.numel() // module.in_channels
    return out.numel() // module.out_channels


def layer_positions(model: nn.Module, example_input: torch.Tensor) -> dict[str, int]:
    """How often a weight of each layer is used in one forward pass of ``example_input``.

    The network runs once from reset, in evaluation mode without gradients; its state, normalisation
    statistics and training flags stay as they were.

    Args:
        model: the network.
        example_input: one batch as the network takes it.

    Returns:
        A number per layer name: the positions at which the layer's weights are used.

    Raises:
        ValueError: a linear or convolutional layer does not run.
    """
    found: dict[str, int] = {}

    def add(name: str, module: nn.Module, x: torch.Tensor, out: torch.Tensor) -> None:
        found[name] = found.get(name, 0) + positions(module, x, out)

    with at_rest(model), watching(weight_layers(model), add):
        model(example_input)
    missing = [name for name in weight_layers(model) if name not in found]
    if missing:
        raise ValueError(f"example_input does not reach the layers {missing}")
    return found


class _Flops(_Linear):
    name = "flops"

    def __init__(self, example_input: torch.Tensor):
        super().__init__()
        self.example_input: torch.Tensor | None = example_input
        self.positions: dict[str, int] = {}

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        super().bind(model, layers)
        if self.example_input is not None:  # not kept alive
            self.positions = layer_positions(model, self.example_input)
            self.example_input = None

    def per_weight(self, layer: LayerInfo) -> float:
        return float(self.positions[layer.name])


def _in_backward() -> bool:
    """Whether autograd is running: what is computed then is computed a second time.

    Reversible training and checkpointing run layers again for their gradients, which is no
    operation of the network.
    """
    return torch._C._current_graph_task_id() != -1


class _Synops(_Linear):
    """MACs weighted by the share of inputs that are not zero, measured in training forwards."""

    name = "synops"

    def __init__(self, momentum: float = 0.9):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
        self.momentum = momentum
        #: per layer: uses of a weight, share of inputs that are not zero, are all inputs 0 or 1
        self.measured: dict[str, tuple[int, float, bool]] = {}
        self._seen: dict[str, list[Any]] = {}
        self._frozen = False
        self._handles: list[Any] = []

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        super().bind(model, layers)
        for layer in layers:

            def hook(
                module: nn.Module,
                inputs: tuple[Any, ...],
                out: torch.Tensor,
                name: str = layer.name,
            ) -> None:
                if module.training and not self._frozen and not _in_backward():
                    self._watch(name, module, inputs[0].detach(), out)

            self._handles.append(layer.module.register_forward_hook(hook))

    def _watch(self, name: str, module: nn.Module, x: torch.Tensor, out: torch.Tensor) -> None:
        binary = ((x == 0) | (x == 1)).all()
        # tensors stay on their device: no synchronisation within the forward pass
        seen = self._seen.setdefault(name, [0, 0, x.new_zeros(()), torch.ones_like(binary)])
        seen[0] += positions(module, x, out)
        seen[1] += x.numel()
        seen[2] = seen[2] + x.count_nonzero()
        seen[3] = seen[3] & binary

    def update(self) -> None:
        for name, (uses, inputs, active, binary) in self._seen.items():
            rate, binary = float(active) / max(inputs, 1), bool(binary)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                shared = torch.tensor([rate, float(binary)], dtype=torch.float64)
                shared = shared.to(active.device) if active.is_cuda else shared
                torch.distributed.all_reduce(shared)
                shared /= torch.distributed.get_world_size()
                rate, binary = float(shared[0]), float(shared[1]) == 1.0
            if name in self.measured:
                rate = self.momentum * self.measured[name][1] + (1 - self.momentum) * rate
            self.measured[name] = (uses, rate, binary)
        self._seen.clear()

    @property
    def ready(self) -> bool:
        return all(layer.name in self.measured for layer in self.layers)

    def freeze(self, frozen: bool) -> None:
        self._frozen = frozen
        self._seen.clear()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def per_weight(self, layer: LayerInfo) -> float:
        uses, rate, _ = self.measured[layer.name]
        return uses * rate

    def state_dict(self) -> dict[str, Any]:
        return {"measured": {name: list(entry) for name, entry in self.measured.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.measured = {name: tuple(entry) for name, entry in state["measured"].items()}
        self._seen.clear()


class _Energy(_Synops):
    name = "energy"

    def per_weight(self, layer: LayerInfo) -> float:
        uses, rate, binary = self.measured[layer.name]
        return uses * (PJ_PER_ADDITION * rate if binary else PJ_PER_MAC)


def device_name(device: torch.device | str = "cpu") -> str:
    """The name under which latency tables know a device of this machine.

    Args:
        device: as PyTorch names it.

    Raises:
        RuntimeError: PyTorch does not know such a device, or CUDA is not there.
    """
    device = torch.device(device)
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
    """

    device: str
    densities: list[float]
    seconds: dict[str, list[float]] = field(default_factory=dict)

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
    example_input: torch.Tensor,
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
    device = example_input.device
    table = LatencyTable(device_name(device), [*points, 1.0])
    uses = layer_positions(model, example_input)
    for name, module in weight_layers(model).items():
        weight = parameter_of(module).detach()
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


class _Latency(Resource):
    name = "latency"

    def __init__(self, table: LatencyTable):
        super().__init__()
        self.table = table

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

    def cost(self, layer: LayerInfo, share: float) -> float:
        xs, ys = self.table.densities, self._times[layer.name]
        at = bisect_left(xs, share)
        if at == 0:  # in proportion from nothing to the first point
            return ys[0] * share / xs[0] if xs[0] else ys[0]
        low, high = xs[at - 1], xs[at]
        return ys[at - 1] + (ys[at] - ys[at - 1]) * (share - low) / (high - low)


def params() -> Resource:
    """Share of weights kept."""
    return _Params()


def flops(example_input: torch.Tensor) -> Resource:
    """Sum over layers of MACs times kept share.

    Args:
        example_input: one batch as the network takes it.

    Raises:
        ValueError: from the pruner, where ``example_input`` does not reach a layer.
    """
    return _Flops(example_input)


def synops(momentum: float = 0.9) -> Resource:
    """As :func:`flops`, each layer weighted by the firing rate of its input.

    Rates are measured in the user's own training forwards, averaged over the ranks of a distributed
    run, and are held while masks are fixed.

    Args:
        momentum: of the average over steps, in [0, 1).

    Raises:
        ValueError: ``momentum`` is outside [0, 1).
    """
    return _Synops(momentum)


def latency(table: LatencyTable) -> Resource:
    """Per-layer times, interpolated between densities.

    Args:
        table: what :func:`measure_latency` returned on this device.

    Raises:
        ValueError: from the pruner, where the table is of another device or lacks a layer.
    """
    return _Latency(table)


def energy(momentum: float = 0.9) -> Resource:
    """Synaptic operations at 0.9 pJ; layers whose input is not 0 or 1 cost 4.6 pJ per MAC.

    Args:
        momentum: as for :func:`synops`.

    Raises:
        ValueError: ``momentum`` is outside [0, 1).
    """
    return _Energy(momentum)


def resource(
    which: str | Resource,
    *,
    example_input: torch.Tensor | None = None,
    latency_table: LatencyTable | None = None,
) -> Resource:
    """A resource by name: ``'params'``, ``'flops'``, ``'synops'``, ``'latency'``, ``'energy'``.

    Args:
        which: the name, or a :class:`Resource`, which comes back as it is.
        example_input: one batch as the network takes it, for ``'flops'``.
        latency_table: for ``'latency'``, from :func:`measure_latency`.

    Raises:
        TypeError: neither a name nor a :class:`Resource`.
        ValueError: an unknown name, or what the resource needs is not given.
    """
    if isinstance(which, Resource):
        return which
    if not isinstance(which, str):
        raise TypeError(f"resource must be a name or a Resource, got {which!r}")
    if which == "flops":
        if example_input is None:
            raise ValueError("resource 'flops' needs example_input: one batch as the model takes")
        return flops(example_input)
    if which == "latency":
        if latency_table is None:
            raise ValueError(
                "resource 'latency' needs latency_table, as measure_latency(model, example_input) "
                "returns it"
            )
        return latency(latency_table)
    known = {"params": params, "synops": synops, "energy": energy}
    if which not in known:
        raise ValueError(
            f"resource must be one of {sorted([*known, 'flops', 'latency'])} or a Resource, "
            f"got {which!r}"
        )
    return known[which]()
