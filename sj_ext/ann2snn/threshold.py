r"""Rules for the threshold: how large an activation a spike train of rate 1 stands for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from .. import checks
from ..arguments import checked
from .activation import QuantizedClip
from .data import Batches
from .graph import activation_nodes
from .observe import sites, watch_activations, watch_steps

__all__ = ["Bound", "Fixed", "Maximum", "MeanSquare", "Percentile", "RunTime", "Threshold"]

PER = ("layer", "channel", "neuron")
#: smallest threshold, in units of the activation; the host's per-channel rule has the same
SMALLEST = 1e-6
#: values of one layer that a quantile keeps at least
_KEPT = 2**22


@dataclass(frozen=True)
class Groups:
    """How the values of an activation fall into groups that share a threshold."""

    per: str
    #: the channels' axis, 1 or the last
    axis: int

    def rows(self, a: torch.Tensor) -> torch.Tensor:
        """``[N, *]`` to ``[groups, values]``."""
        if self.per == "layer" or a.dim() < 2:
            return a.reshape(1, -1)
        if self.per == "channel":
            return a.movedim(self.axis, 0).flatten(1)
        return a.flatten(1).T

    def shaped(self, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """One value per group to a tensor that broadcasts to ``like`` ``[N, *]``."""
        if self.per == "layer" or like.dim() < 2:
            return values.reshape(1)
        if self.per == "neuron":
            return values.reshape(like.shape[1:])
        axis = self.axis % like.dim()
        return values.reshape(-1, *[1] * (like.dim() - 1 - axis))


def channel_axis(ann: fx.GraphModule, name: str) -> int:
    """The channels' axis of an activation: the last after a linear layer, else 1."""
    node: Any = activation_nodes(ann)[name].args[0]
    made_by = node.op == "call_module" and ann.get_submodule(str(node.target))
    return -1 if isinstance(made_by, nn.Linear) else 1


class Threshold:
    """A rule for thresholds; :meth:`measure` or :meth:`settle` says what they are.

    Args:
        per: ``'layer'``, ``'channel'`` or ``'neuron'``: what shares one threshold.

    Raises:
        ValueError: another ``per``.
    """

    #: whether the rule reads calibration data
    needs_data = True

    def __init__(self, per: str = "layer"):
        self.per = checks.choice("per", per, PER)

    def measure(self, ann: fx.GraphModule, data: Batches | None) -> dict[str, torch.Tensor]:
        """Thresholds of a prepared network by activation, from its values on the data.

        Args:
            ann: the network.
            data: the calibration data, or ``None`` where the rule needs none.

        Returns:
            A tensor for each activation that broadcasts to ``[N, *]`` from the right; it may hold
            zeros, for what is never active.

        Raises:
            NotImplementedError: the rule needs the converted network; see :meth:`settle`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no measure()")

    def settle(self, snn: nn.Module, data: Batches | None) -> None:
        """Set thresholds that need the converted network; the others leave it as it is.

        Args:
            snn: the network with spiking layers.
            data: the calibration data.
        """

    def _statistics(
        self,
        ann: fx.GraphModule,
        data: Batches | None,
        make: Callable[[], Any],
    ) -> dict[str, torch.Tensor]:
        if data is None:
            raise ValueError(f"calibration: {type(self).__name__} needs calibration data, got None")
        names = list(activation_nodes(ann))
        groups = {name: Groups(self.per, channel_axis(ann, name)) for name in names}
        gathered = {name: make() for name in names}
        shapes: dict[str, torch.Tensor] = {}
        for again in range(gathered[names[0]].passes if names else 0):

            def see(name: str, a: torch.Tensor, again: int = again) -> None:
                shapes[name] = a[:1]
                gathered[name].add(groups[name].rows(a.clamp(min=0)), again)

            watch_activations(ann, data.inputs(), {name: partial(see, name) for name in names})
        return {name: groups[name].shaped(gathered[name].result(), shapes[name]) for name in names}


class Maximum(Threshold):
    """The largest activation over all calibration data.

    Args:
        per: ``'layer'``, ``'channel'`` or ``'neuron'``.

    Raises:
        ValueError: another ``per``.

    Source: Diehl et al., IJCNN 2015 (data-based normalisation), without a moving average.
    """

    def measure(self, ann: fx.GraphModule, data: Batches | None) -> dict[str, torch.Tensor]:
        """The maxima; see :meth:`Threshold.measure`."""
        return self._statistics(ann, data, _Maximum)


class Percentile(Threshold):
    """A percentile of all activations over all calibration data, zeros included.

    The quantile is that of ``numpy.percentile`` on all values at once, without keeping them: only
    the upper part that can still matter stays. Where data arrive so unevenly that a value may have
    been lost, a warning says so.

    Args:
        q: the percentile, in (0, 100].
        per: ``'layer'``, ``'channel'`` or ``'neuron'``.

    Raises:
        TypeError: ``q`` is no number.
        ValueError: ``q`` outside (0, 100], or another ``per``.

    Source: Rueckauer et al., Front. Neurosci. 2017; per channel Kim et al., AAAI 2020.
    """

    def __init__(self, q: float = 99.9, per: str = "layer"):
        super().__init__(per)
        self.q = checks.number("q", q, above=0, at_most=100)

    def measure(self, ann: fx.GraphModule, data: Batches | None) -> dict[str, torch.Tensor]:
        """The percentiles; see :meth:`Threshold.measure`."""
        return self._statistics(ann, data, lambda: _Quantile(self.q / 100))


class MeanSquare(Threshold):
    r"""The threshold whose staircase of ``T`` steps is nearest to the activation.

    .. math::
        \theta = \arg\min_\theta \sum_a
        \left(a - \tfrac{\theta}{T} \mathrm{clip}(\lfloor a T / \theta + s \rfloor, 0, T)\right)^2

    over ``grid`` values, from the maximum downwards in steps of a hundredth of it. It goes through
    the calibration data twice.

    Args:
        T: number of steps :math:`T`.
        grid: number of candidates, up to 100.
        per: ``'layer'``, ``'channel'`` or ``'neuron'``.
        shift: :math:`s`; 0 for neurons that start from 0, 1/2 for those that start from half.

    Raises:
        TypeError: ``T`` or ``grid`` is no integer.
        ValueError: an argument out of range.

    Source: Li et al., "A Free Lunch From ANN", ICML 2021.
    """

    def __init__(self, T: int, grid: int = 95, per: str = "layer", *, shift: float = 0.0):
        super().__init__(per)
        self.T = checks.integer("T", T, at_least=1)
        self.grid = checks.integer("grid", grid, at_least=1, at_most=100)
        self.shift = checks.number("shift", shift, at_least=0, below=1)

    def measure(self, ann: fx.GraphModule, data: Batches | None) -> dict[str, torch.Tensor]:
        """The minimisers; see :meth:`Threshold.measure`."""
        return self._statistics(ann, data, lambda: _MeanSquare(self.T, self.grid, self.shift))


class Bound(Threshold):
    """The bound of the activation itself: of QuantizedClip, ReLU6 or Hardtanh; needs no data.

    Args:
        scale: factor on all bounds; a little below 1 lets a sum fire that equals the threshold but
            for rounding.

    Raises:
        TypeError: ``scale`` is no number.
        ValueError: ``scale`` outside (0, 1]; at the conversion, an activation without a bound.
    """

    needs_data = False

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__("layer")
        self.scale = checks.number("scale", scale, above=0, at_most=1)

    def measure(self, ann: fx.GraphModule, data: Batches | None) -> dict[str, torch.Tensor]:
        """The bounds; see :meth:`Threshold.measure`."""
        return {name: self._bound(ann, name) for name in activation_nodes(ann)}

    def _bound(self, ann: fx.GraphModule, name: str) -> torch.Tensor:
        module = ann.get_submodule(name)
        bound = bound_of(module)
        if bound is None:
            raise ValueError(
                f"threshold: Bound() finds no bound in {name!r} ({type(module).__name__}); train "
                f"with QuantizedClip, or use Maximum or Percentile"
            )
        if not 0 < bound < math.inf:
            raise ValueError(f"threshold: the bound of {name!r} must be above 0, got {bound}")
        return torch.tensor([self.scale * bound], dtype=torch.float64)


@checked
class Fixed(Threshold):
    """Thresholds that are known, by the name of the activation; needs no data.

    Args:
        thresholds: a tensor for each activation that broadcasts to ``[N, *]`` from the right, as
            ``report`` names them.

    Raises:
        ValueError: (at the conversion) an activation that is not named, as in another network.
    """

    needs_data = False

    def __init__(self, thresholds: Mapping[str, torch.Tensor]):
        super().__init__("layer")
        self.thresholds = dict(thresholds)

    def measure(self, ann: fx.GraphModule, data: Batches | None) -> dict[str, torch.Tensor]:
        """The thresholds as they were given; see :meth:`Threshold.measure`."""
        missing = [name for name in activation_nodes(ann) if name not in self.thresholds]
        if missing:
            raise ValueError(
                f"threshold: Fixed() has no threshold for {missing[0]!r}; it has those of "
                f"{', '.join(self.thresholds) or 'no layer'}, so it was made for another network"
            )
        return {name: self.thresholds[name] for name in activation_nodes(ann)}


class RunTime(Threshold):
    r"""The largest current that a layer really receives while the layers before it spike.

    Layer by layer from the input: :math:`\theta_l = \alpha \max_t z_l(t)` over ``T`` steps, samples
    and units, with the layers before it at their thresholds (of scale 1) and started from 0.

    Args:
        T: steps to run.
        scale: :math:`\alpha`; below 1 it is faster and less exact.
        reset: ``'soft'`` or ``'hard'``, while measuring.
        encoder: a function from the input to that of one step, such as a Poisson encoder; the
            input itself at every step if ``None``.

    Raises:
        TypeError: ``T`` is no integer or ``encoder`` not callable.
        ValueError: an argument out of range.

    Source: Sengupta et al., "Going Deeper in Spiking Neural Networks", Front. Neurosci. 2019 (hard
    reset); Han et al., "RMP-SNN", CVPR 2020 (soft reset; that the scale is one factor for all
    layers rests on memory of the paper).
    """

    def __init__(
        self,
        T: int = 2500,
        scale: float = 1.0,
        reset: str = "soft",
        encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__("layer")
        self.T = checks.integer("T", T, at_least=1)
        self.scale = checks.number("scale", scale, above=0, at_most=1)
        self.reset = checks.choice("reset", reset, ("soft", "hard"))
        self.encoder = None if encoder is None else checks.function("encoder", encoder)

    def measure(self, ann: fx.GraphModule, data: Batches | None) -> dict[str, torch.Tensor]:
        """1 for every activation; :meth:`settle` finds the thresholds."""
        if data is None:
            raise ValueError("calibration: RunTime needs calibration data, got None")
        return {name: torch.ones(1) for name in activation_nodes(ann)}

    def settle(self, snn: nn.Module, data: Batches | None) -> None:
        """Run the converted network and set its thresholds; see :meth:`Threshold.settle`."""
        if data is None:
            raise ValueError("calibration: RunTime needs calibration data, got None")
        layers = sites(snn)
        resets = {site: site.if_node.v_reset for site in layers.values()}
        for site in resets:
            site.if_node.v_reset = None if self.reset == "soft" else 0.0
        for name, site in layers.items():
            largest = [0.0]

            def see(step: int, z: torch.Tensor, _: Any, largest: list[float] = largest) -> None:
                largest[0] = max(largest[0], float(z.max()))

            for x in data.inputs():
                watch_steps(snn, x, self.T, site.scaler0, see, self.encoder)
            site.set_threshold(alive(name, torch.tensor([largest[0]], dtype=torch.float64)))
        for site, v_reset in resets.items():
            site.if_node.v_reset = v_reset
            site.set_threshold(site.threshold * self.scale)


def bound_of(module: nn.Module) -> float | None:
    """The largest value of an activation, where it has one."""
    if isinstance(module, QuantizedClip):
        return float(module.bound)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        bound: Any = module.max_val
        return float(bound)
    return None


def alive(name: str, threshold: torch.Tensor) -> torch.Tensor:
    """``threshold`` with what is never active clamped, and a warning that names it."""
    dead = threshold < SMALLEST
    if not bool(dead.any()):
        return threshold
    what = "is never active" if dead.all() else f"has {int(dead.sum())} dead of {dead.numel()}"
    warnings.warn(
        f"layer {name!r} {what} on the calibration data: its threshold is set to {SMALLEST}",
        stacklevel=2,
    )
    return threshold.clamp(min=SMALLEST)


def all_alive(thresholds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """:func:`alive` for every layer."""
    return {name: alive(name, value) for name, value in thresholds.items()}


class _Maximum:
    """Largest value of each row."""

    passes = 1

    def __init__(self) -> None:
        self.largest: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, again: int) -> None:
        here = rows.max(1).values
        self.largest = here if self.largest is None else torch.maximum(self.largest, here)

    def result(self) -> torch.Tensor:
        assert self.largest is not None
        return self.largest


class _Quantile:
    """A quantile of each row, linear between ranks, from the upper part of all values seen.

    What is kept is eight times what a quantile of the values so far needs, and four million values
    at least. The largest value ever dropped proves the result, or tells that it is not proven.
    """

    passes = 1
    slack = 8

    def __init__(self, q: float):
        self.q = q
        self.kept: torch.Tensor | None = None
        self.count = 0
        self.dropped: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, again: int) -> None:
        self.count += rows.shape[1]
        self.kept = rows if self.kept is None else torch.cat((self.kept, rows), 1)
        room = max(
            math.ceil(self.slack * (1 - self.q) * self.count) + 2, _KEPT // max(len(rows), 1)
        )
        if self.kept.shape[1] > 2 * room:
            largest = self.kept.topk(room + 1, 1).values  # in order
            lost = largest[:, room]
            self.dropped = lost if self.dropped is None else torch.maximum(self.dropped, lost)
            self.kept = largest[:, :room].clone()

    def result(self) -> torch.Tensor:
        assert self.kept is not None
        rank = self.q * (self.count - 1)
        low = math.floor(rank)
        at = self.count - 1 - low  # from the top
        if at >= self.kept.shape[1]:
            at, rank = self.kept.shape[1] - 1, float(low)
        largest = self.kept.topk(at + 1, 1).values
        lower, upper = largest[:, at], largest[:, max(at - 1, 0)]
        if self.dropped is not None and bool((lower < self.dropped).any()):
            warnings.warn(
                "calibration: batches differ so much that the quantile is a lower bound; shuffle "
                "the data",
                stacklevel=2,
            )
        return lower + (upper - lower) * (rank - low)


class _MeanSquare:
    """Squared error of the staircase for each candidate, after the maximum is known."""

    passes = 2

    def __init__(self, steps: int, grid: int, shift: float):
        self.steps, self.shift = steps, shift
        self.shares = [1.0 - 0.01 * i for i in range(grid)]
        self.maximum = _Maximum()
        self.errors: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, again: int) -> None:
        if again == 0:
            self.maximum.add(rows, again)
            return
        largest = self.maximum.result().clamp(min=torch.finfo(rows.dtype).tiny)
        errors = []
        for share in self.shares:
            step = (share * largest / self.steps).unsqueeze(1)
            stairs = (rows / step + self.shift).floor_().clamp_(0, self.steps).mul_(step)
            errors.append(stairs.sub_(rows).square_().sum(1))
        total = torch.stack(errors)
        self.errors = total if self.errors is None else self.errors + total

    def result(self) -> torch.Tensor:
        assert self.errors is not None
        best = self.errors.argmin(0)
        shares = torch.tensor(self.shares, dtype=self.errors.dtype, device=best.device)
        return self.maximum.result() * shares[best]
