r"""SNASNet: two cells of four nodes, with edges forward in a step and back to the next one.

With :math:`r_i` what came back to node i from the step before (0 at first) and :math:`o_{ij}` the
operation on the edge i -> j,

.. math::
    a_i = n_i + r_i, \qquad n_j = \sum_{i < j} o_{ij}(a_i), \qquad
    r'_i = \sum_{j > i} o_{ji}(a_j),

where node 0 is the input, node 3 the output, and nothing comes back to node 3.

Source: Kim et al., "Neural Architecture Search for Spiking Neural Networks", ECCV 2022
(arXiv 2201.10355).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import nn

from ... import checks, host
from ...arguments import checked
from ...layer.spiking import NeuronFactory, lif, new_neuron
from ..space import Architecture
from ..space.snasnet import BACKWARD, FORWARD, matrix

__all__ = ["Cell", "SNASNet", "child"]

#: (classes, classifier outputs a class, channels, image, stem stride, classifier width)
_DATASETS = {
    "cifar10": (10, 10, 256, 32, 1, 1024),
    "cifar100": (100, 5, 128, 32, 1, 1024),
    "tinyimagenet": (200, 5, 128, 64, 2, 4096),
}
_HOSTS = "spikingjelly.activation_based.model.snas_net"


@checked
class Cell(host.base.MemoryModule):
    """The searched part: operations on edges between four nodes, for one step at a time.

    Args:
        channels: in and out.
        rows: the 4 x 4 matrix of operations' numbers.
        spiking_neuron: makes the neurons in front of convolutions.

    Shapes:
        ``[N, C, H, W]``; the same out.

    Raises:
        ValueError: the matrix is not 4 x 4 of numbers from 0 to 4.
    """

    def __init__(self, channels: int, rows: Sequence[Sequence[int]], spiking_neuron: NeuronFactory):
        super().__init__()
        checks.sizes(channels=channels)
        if len(rows) != 4 or any(len(row) != 4 for row in rows):
            raise ValueError(f"rows must be a 4 x 4 matrix, got {rows!r}")
        self.cell_architecture, self.cell_architecture_back = (
            nn.ModuleList(_operation(rows[i][j], channels, spiking_neuron) for i, j in edges)
            for edges in (FORWARD, BACKWARD)
        )
        for node in range(3):  # what came back, of which a reset lets go
            self.register_memory(f"back{node}", 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output node of one step."""
        held: list[Any] = [x + self.back0]
        for j in (1, 2, 3):
            terms = [
                op(held[i])
                for op, (i, to) in zip(self.cell_architecture, FORWARD, strict=True)
                if to == j
            ]
            held.append(sum(terms[1:], terms[0]) + (getattr(self, f"back{j}") if j < 3 else 0))
        for node in range(3):
            terms = [
                op(held[j])
                for op, (j, to) in zip(self.cell_architecture_back, BACKWARD, strict=True)
                if to == node
            ]
            setattr(self, f"back{node}", sum(terms[1:], terms[0]))
        return held[3]


@checked
class SNASNet(nn.Module):
    """Stem, cell, wider cell and classifier; the names of its tensors are the public program's.

    Args:
        architecture: of :func:`sj_ext.search.space.snasnet`.
        num_classes: at least 2.
        T: number of steps.
        channels: of the first cell; the second has twice as many.
        image_size: height and width of the input.
        pool: by how much the map is averaged before the classifier.
        hidden: width of the classifier.
        cluster: outputs that are averaged for one class.
        stem_stride: of the stem.
        dropout: before the classifier.
        spiking_neuron: makes the neurons, by default leaky ones with a time constant of 4/3.

    Shapes:
        ``[N, 3, H, W]`` to ``[T, N, classes]``.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 10,
        T: int = 5,
        *,
        channels: int = 256,
        image_size: int = 32,
        pool: int = 2,
        hidden: int = 1024,
        cluster: int = 10,
        stem_stride: int = 1,
        dropout: float = 0.5,
        spiking_neuron: NeuronFactory | None = None,
    ):
        super().__init__()
        self.T = checks.integer("T", T, at_least=1)
        neuron, rows = spiking_neuron or published_lif(), matrix(architecture.genes)
        checks.sizes(channels=channels, num_classes=num_classes, image_size=image_size, pool=pool)
        checks.sizes(hidden=hidden, cluster=cluster, stem_stride=stem_stride)
        checks.number("dropout", dropout, at_least=0, below=1)
        wide = 2 * channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.cell1 = Cell(channels, rows, neuron)
        self.downconv1 = nn.Sequential(
            nn.BatchNorm2d(channels),
            new_neuron(neuron),
            nn.Conv2d(channels, wide, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.resdownsample1 = nn.AvgPool2d(2)
        self.cell2 = Cell(wide, rows, neuron)
        self.last_act = nn.Sequential(nn.BatchNorm2d(wide), new_neuron(neuron))
        self.resdownsample2 = nn.AvgPool2d(pool)
        side = image_size // (2 * stem_stride * pool)
        self.classifier = nn.Sequential(
            host.layer.Dropout(dropout),
            nn.Linear(wide * side * side, hidden, bias=False),
            new_neuron(neuron),
            nn.Linear(hidden, cluster * num_classes),
        )
        self.cluster = checks.integer("cluster", cluster, at_least=1)
        _initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every step."""
        static = self.stem(x)
        return torch.stack([self._step(static) for _ in range(self.T)])

    def _step(self, static: torch.Tensor) -> torch.Tensor:
        x = self.resdownsample1(self.downconv1(self.cell1(static)))
        x = self.resdownsample2(self.last_act(self.cell2(x)))
        return self.classifier(x.flatten(1)).unflatten(1, (-1, self.cluster)).mean(2)


@checked
def child(architecture: Architecture, dataset: str = "cifar10", T: int = 5, pool: int = 2) -> Any:
    """The network of an architecture at its published size.

    Where SpikingJelly has the model (2.x), it is SpikingJelly's own, whose output is the mean over
    steps ``[N, classes]``; elsewhere :class:`SNASNet`, ``[T, N, classes]``, with the same tensors.

    Args:
        architecture: of :func:`sj_ext.search.space.snasnet`.
        dataset: ``'cifar10'``, ``'cifar100'`` or ``'tinyimagenet'``.
        T: number of steps.
        pool: by how much the map is averaged before the classifier.

    Shapes:
        ``[N, 3, H, W]`` to logits.

    Raises:
        ValueError: ``dataset`` is unknown.
    """
    checks.choice("dataset", dataset, tuple(_DATASETS))
    if importlib.util.find_spec(_HOSTS) is not None:
        arguments = SimpleNamespace(
            dataset=dataset,
            timestep=T,
            second_avgpooling=pool,
            threshold=1.0,
            tau=4 / 3,
            celltype=architecture.space.removeprefix("snasnet/"),
        )
        return importlib.import_module(_HOSTS).SNASNet(
            arguments, numpy.array(matrix(architecture.genes))
        )
    classes, cluster, channels, image, stride, hidden = _DATASETS[dataset]
    return SNASNet(
        architecture,
        classes,
        T,
        channels=channels,
        image_size=image,
        pool=pool,
        hidden=hidden,
        cluster=cluster,
        stem_stride=stride,
    )


def published_lif() -> NeuronFactory:
    """The paper's neuron: leaky with a time constant of 4/3, ATan, detached hard reset."""
    return lif(4 / 3, host.surrogate.ATan())


class _Zero(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.0


def _operation(number: int, channels: int, spiking_neuron: NeuronFactory) -> nn.Module:
    number = checks.integer("rows", int(number), at_least=0, at_most=4)
    if number in (2, 3):
        size = 1 if number == 2 else 3
        return nn.Sequential(
            new_neuron(spiking_neuron),
            nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
            nn.BatchNorm2d(channels),
        )
    return _Zero() if number == 0 else nn.Identity() if number == 1 else nn.AvgPool2d(3, 1, 1)


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=2)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
