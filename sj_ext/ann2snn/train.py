"""Calibrations that train the weights of a converted network, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .. import checks
from .corrections import Calibration
from .data import Batches
from .graph import ADDITIONS
from .observe import mean_at, sites, watch_activations
from .report import evaluate
from .site import SpikingSite

__all__ = ["ProxyFineTuning", "Weights"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass
class _Layer:
    """A spiking layer and the layer with weights that drives it."""

    name: str
    site: SpikingSite
    weighted: nn.Module


class _Training(Calibration):
    """What the two have in common: which layers they train, and on what."""

    def __init__(self, lr: float):
        super().__init__()
        self.lr = checks.number("lr", lr, above=0)

    def _trained(self, snn: nn.Module) -> Iterator[_Layer]:
        assert isinstance(snn, fx.GraphModule)
        for name, site in sites(snn).items():
            weighted = _weighted_before(snn, name)
            if weighted is not None:
                yield _Layer(name, site, weighted)

    def _samples(
        self, snn: nn.Module, ann: fx.GraphModule, layer: _Layer, x: torch.Tensor, T: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean input of the layer's weights, what else its neuron gets, and the activation."""
        wanted: list[torch.Tensor] = []
        watch_activations(ann, [x], {layer.name: wanted.append})
        taken = mean_at(snn, x, T, layer.weighted, of="input")
        current = mean_at(snn, x, T, layer.site.scaler0, of="input")
        with torch.no_grad():
            rest = current - layer.weighted(taken)
        return taken, rest, wanted[0]


class Weights(_Training):
    r"""Fit each layer's weights so that its staircase on mean inputs meets the activation.

    .. math::
        \min_W \sum_c \mathrm{mean}
        \left(\tfrac{\theta}{T} \mathrm{clip}(\lfloor T z / \theta + s \rfloor, 0, T) - a\right)^2

    with the gradient straight through the floor, and :math:`s` the charge that the neuron starts
    with and is given over the steps.

    Args:
        lr: of Adam, with a cosine schedule to 0.
        steps: steps for each layer.
        batch: samples in each.
        seed: of the choice of samples.

    Raises:
        TypeError: ``lr`` is no number.
        ValueError: an argument out of range.

    Source: Li et al., "A Free Lunch From ANN", ICML 2021 (advanced pipeline).
    """

    def __init__(self, lr: float = 1e-5, steps: int = 200, batch: int = 32, seed: int = 0):
        super().__init__(lr)
        self.steps = checks.integer("steps", steps, at_least=1)
        self.batch = checks.integer("batch", batch, at_least=1)
        self.seed = checks.integer("seed", seed)

    def apply(self, snn: nn.Module, ann: fx.GraphModule, data: Batches | None, T: int) -> None:
        """Train the weights; see :meth:`Calibration.apply`."""
        data = self._needed(data)
        draw = torch.Generator().manual_seed(self.seed)
        for layer in self._trained(snn):
            parts = [self._samples(snn, ann, layer, x, T) for x in data.inputs()]
            taken, rest, wanted = (torch.cat(part) for part in zip(*parts, strict=True))
            optimizer = torch.optim.Adam(layer.weighted.parameters(), self.lr)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
            for _ in range(self.steps):
                chosen = torch.randint(len(taken), (min(self.batch, len(taken)),), generator=draw)
                given = self._staircase(layer, layer.weighted(taken[chosen]) + rest[chosen], T)
                loss = (given - wanted[chosen]).square().sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cosine.step()

    def _staircase(self, layer: _Layer, z: torch.Tensor, T: int) -> torch.Tensor:
        site = layer.site
        theta, node = site.threshold, site.if_node
        count = T * site.gain * z / theta + (node.v_init + T * node.shift).detach()
        floored = count + (count.floor() - count).detach()
        return floored.clamp(0, T) * theta / T


class ProxyFineTuning(_Training):
    """Fine-tune each layer through its activation, on what the spiking layers before it send.

    A layer's weights get the gradient of the trained network's layer, at the mean inputs that the
    spiking network gives it and with the value of the spiking layer's mean output, so that the
    output comes nearer to the activation. Thresholds stay. The first layer, whose input is exact,
    is left out.

    Args:
        epochs: passes over the data for each layer.
        lr: of SGD with momentum.
        momentum: of SGD.
        weight_decay: of SGD.
        force: keep the result even if the accuracy on the data falls; else labels are needed, and
            a layer that does not help is put back.

    Raises:
        TypeError: ``lr`` is no number.
        ValueError: an argument out of range; at the conversion, labels missing.

    Source: Hu et al., "Fast-SNN", TPAMI 2023.
    """

    def __init__(
        self,
        epochs: int = 1,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        force: bool = False,
    ):
        super().__init__(lr)
        self.epochs = checks.integer("epochs", epochs, at_least=1)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.weight_decay = checks.number("weight_decay", weight_decay, at_least=0)
        self.force = checks.flag("force", force)

    def apply(self, snn: nn.Module, ann: fx.GraphModule, data: Batches | None, T: int) -> None:
        """Train the weights; see :meth:`Calibration.apply`."""
        data = self._needed(data)
        score = self._score(snn, data, T)
        for layer in list(self._trained(snn))[1:]:
            before = [p.detach().clone() for p in layer.weighted.parameters()]
            self._tune(snn, ann, layer, data, T)
            after = self._score(snn, data, T)
            if not self.force and not after > score:
                with torch.no_grad():
                    for parameter, value in zip(layer.weighted.parameters(), before, strict=True):
                        parameter.copy_(value)
            else:
                score = after

    def _score(self, snn: nn.Module, data: Batches, T: int) -> float:
        if self.force:
            return 0.0
        return evaluate(snn, data.labelled("ProxyFineTuning"), (T,))[T]

    def _tune(
        self, snn: nn.Module, ann: fx.GraphModule, layer: _Layer, data: Batches, T: int
    ) -> None:
        activation = ann.get_submodule(layer.name)
        optimizer = torch.optim.SGD(
            layer.weighted.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay
        )
        for _ in range(self.epochs):
            for x in data.inputs():
                taken, rest, wanted = self._samples(snn, ann, layer, x, T)
                sent = mean_at(snn, x, T, layer.site.scaler1)
                proxy = activation(layer.weighted(taken) + rest)
                loss = (proxy + (sent - proxy).detach() - wanted).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def _weighted_before(snn: fx.GraphModule, name: str) -> nn.Module | None:
    """The layer with weights that drives a spiking layer, alone or in a sum; not a shared one."""
    entry: Any
    (entry,) = (node for node in snn.graph.nodes if str(node.target) == f"{name}.scaler0")
    source = entry.args[0].args[0]  # before the steps are split off
    terms = source.args if source.target in ADDITIONS else (source,)
    for term in terms:
        if isinstance(term, fx.Node) and term.op == "call_module":
            module = snn.get_submodule(str(term.target))
            if isinstance(module, _WEIGHTED) and _calls(snn, str(term.target)) == 1:
                return module
    return None


def _calls(snn: fx.GraphModule, target: str) -> int:
    return sum(node.target == target for node in snn.graph.nodes)
