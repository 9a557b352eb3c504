"""Whole channels as units: rows of one layer, or of all layers that the data flow ties together."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .atoms import Graph, Product
from .importance import Importance
from .layers import TRANSPOSED, is_prunable
from .masks import attach, mask_of, own_mask
from .resources import LayerInfo
from .selection import Cut, NotFinite, cut_mask_one_
from .units import Weights, checked_scores

__all__ = ["Channels", "channels_first", "output_axis"]


def output_axis(module: nn.Module) -> int:
    """The axis of a weight that has an index for each output channel."""
    return 1 if isinstance(module, TRANSPOSED) else 0


def channels_first(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A view ``[out_channels, ...]`` of the weight; needs one group where it is transposed."""
    return weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight


class Place(NamedTuple):
    """Entries of a parameter that are silenced with the units of a pool."""

    module: nn.Module
    name: str
    axis: int
    #: the entries, and the unit of each
    entries: torch.Tensor
    units: torch.Tensor


class Channels(Weights):
    """Every output channel is a unit; its magnitude is the root mean square of its weights.

    With a graph of the data flow, channels that meet in a sum or a normalisation are one unit, as
    far as all their layers are pruned. A cut channel is silent: biases, scale and shift of its
    normalisation and learned initial potentials are zero too, and so is what a layer with a
    standardised weight reads of it, whose statistics are then those of the smaller layer. Each pool
    keeps its strongest unit.

    Args:
        layers: the pruned layers.
        model: the network.
        graph: what :func:`~sj_ext.pruning.dependency.trace` found; None where nothing ran yet.
        importance: the criterion; None for the magnitude.
    """

    single_weights = False

    def __init__(
        self,
        layers: Sequence[LayerInfo],
        model: nn.Module,
        graph: Graph | None = None,
        importance: Importance | None = None,
    ):
        super().__init__(layers)
        self.model = model
        self.importance = importance
        for layer in self.layers:
            if not is_prunable(layer.module) or layer.attribute != "weight":
                raise ValueError(
                    "granularity 'channel' cuts linear and convolutional layers, and "
                    f"{layer.name!r} is none: leave it out of layers="
                )
            if isinstance(layer.module, TRANSPOSED) and layer.module.groups > 1:
                raise ValueError(
                    f"granularity 'channel' needs groups=1 in transposed convolutions, got layer "
                    f"{layer.name!r}, {layer.module}: leave it out"
                )
        #: by pool, for each of its layers the row of every unit
        self.rows: list[list[tuple[int, torch.Tensor]]] = _pools(self.layers, model, graph)
        self.sizes = [len(rows[0][1]) - 1 for rows in self.rows]
        self.prices = [[(i, self._of(i)[0].numel()) for i, _ in rows] for rows in self.rows]
        self.graph = graph
        self._places: list[list[Place]] | None = None
        self._products: list[tuple[Product, list[Shrinking]]] = []
        if graph is not None:
            self.learn(graph)
            self._products = [(product, _axes(self, product, graph)) for product in graph.products]

    def learn(self, graph: Graph | None) -> None:
        """What is silenced with a channel, from the data flow; None: from the order of modules."""
        if graph is None:
            self._places = [_declared(self, p) for p in range(len(self.rows))]
        else:
            self._places = [_traced(self, p, graph) for p in range(len(self.rows))]
        for places in self._places:
            for place in places:
                if mask_of(place.module, place.name) is None:
                    attach(place.module, place.name)
        self.columns = [_columns(self, p) for p in range(len(self.rows))]

    @property
    def learned(self) -> bool:
        """It is known what belongs to a channel."""
        return self._places is not None

    def left(self, cut: Sequence[int]) -> dict[str, float]:
        sums: dict[str, list[float]] = {}
        for product, axes in self._products:
            share = 1.0
            for length, entries in axes:
                share *= 1 - sum(cut[pool] * n for pool, n in entries.items()) / length
            now, whole = sums.get(product.name, (0.0, 0.0))
            sums[product.name] = [now + share * product.size, whole + product.size]
        return {name: now / whole for name, (now, whole) in sums.items() if whole}

    def _of(self, i: int) -> torch.Tensor:
        layer = self.layers[i]
        return channels_first(layer.module, layer.parameter.detach())

    def _vectors(self, pool: int) -> list[Place]:
        assert self._places is not None  # learned before the first cut
        return self._places[pool]

    def _scores(self, pool: int) -> tuple[torch.Tensor, int]:
        """The score of each unit, and which is the strongest."""
        squares: Any = 0.0
        size = 0
        for i, index in self.rows[pool]:
            values = self._of(i)
            if self.importance is not None:
                scores = checked_scores(self.importance, self.layers[i])
                values = channels_first(self.layers[i].module, scores)
            rows = values[index.to(values.device)].flatten(1)
            squares = squares + rows.double().square().sum(1)
            size += rows.shape[1]
        score = (squares / size).sqrt()
        if not score.isfinite().all():
            raise NotFinite([pool])
        return score, int(score.argmax())

    def magnitudes(self, pools: Sequence[int]) -> list[torch.Tensor]:
        found = []
        for pool in pools:
            score, strongest = self._scores(pool)
            found.append(torch.cat((score[:strongest], score[strongest + 1 :])))
        return found

    def _kept(self, pools: Sequence[int], cut: Cut) -> list[torch.Tensor]:
        """Which units are at the cut or above it."""
        kept = []
        magnitudes = self.magnitudes(pools)
        for number, pool in enumerate(pools):
            others = torch.empty_like(magnitudes[number], dtype=torch.bool)
            cut_mask_one_(others, magnitudes, number, cut)
            strongest = self._scores(pool)[1]
            kept.append(torch.cat((others[:strongest], others.new_ones(1), others[strongest:])))
        return kept

    def zero(self, pools: Sequence[int], cut: Cut) -> None:
        for pool, kept in zip(pools, self._kept(pools, cut), strict=True):
            for i, index in self.rows[pool]:
                rows = self._of(i)
                rows[index.to(rows.device)[~kept]] = 0
            for place in self._vectors(pool):
                vector = getattr(place.module, place.name).detach()
                gone = _gone(place, kept).to(vector.device)
                vector.index_fill_(place.axis, gone, 0)

    def scale(self, pools: Sequence[int], low: Cut, high: Cut, factors: Sequence[float]) -> None:
        below, upto = self._kept(pools, low), self._kept(pools, high)
        for pool, inner, outer, factor in zip(pools, below, upto, factors, strict=True):
            for i, index in self.rows[pool]:
                rows = self._of(i)
                rows[index.to(rows.device)[inner & ~outer]] *= factor

    def write_masks(self, pools: Sequence[int], cut: Cut) -> None:
        for pool, kept in zip(pools, self._kept(pools, cut), strict=True):
            for i, index in self.rows[pool]:
                layer = self.layers[i]
                mask = own_mask(layer.module, layer.attribute).mask
                rows = channels_first(layer.module, mask)
                rows[index.to(rows.device)[~kept]] = False
            for place in self._vectors(pool):
                mask = own_mask(place.module, place.name).mask
                mask.index_fill_(place.axis, _gone(place, kept).to(mask.device), False)


def _gone(place: Place, kept: torch.Tensor) -> torch.Tensor:
    return place.entries[~kept.cpu()[place.units]]


def _pools(
    layers: Sequence[LayerInfo], model: nn.Module, graph: Graph | None
) -> list[list[tuple[int, torch.Tensor]]]:
    """Units with rows in the same layers are a pool; without a graph, each layer is one."""
    pools: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    coupled = {} if graph is None else _units(layers, model, graph)
    taken: set[tuple[int, int]] = set()
    for i, layer in enumerate(layers):
        for row in range(layer.parameter.shape[output_axis(layer.module)]):
            unit = coupled.get((i, row), [(i, row)])
            if (i, row) not in taken:
                taken.update(unit)
                pools[tuple(where for where, _ in unit)].append([index for _, index in unit])
    return [
        [(i, torch.tensor([unit[k] for unit in units])) for k, i in enumerate(signature)]
        for signature, units in pools.items()
    ]


def _units(
    layers: Sequence[LayerInfo], model: nn.Module, graph: Graph
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Of each row all rows that are cut with it: only where every layer that is tied is pruned."""
    families = graph.atoms.families()
    pruned = {id(layer.parameter): i for i, layer in enumerate(layers)}
    producers = producing(model)
    found = {}
    for atoms in families.values():
        rows = []
        whole = True
        for place in (graph.atoms.place[atom] for atom in atoms):
            if place is None or producers.get(place[0]) != place[1]:
                continue
            whole &= place[0] in pruned
            if place[0] in pruned:
                rows.append((pruned[place[0]], place[2]))
        if whole:
            rows = sorted(set(rows))
            found.update(dict.fromkeys(rows, rows))
    return found


def producing(model: nn.Module) -> dict[int, int]:
    """Weights that make channels, by id, each with its output axis."""
    return {
        id(module.weight): output_axis(module) for module in model.modules() if is_prunable(module)
    }


def _silenced(module: nn.Module, name: str) -> bool:
    """Zero is silence: of a bias, a scale or shift, or a learned initial potential."""
    if isinstance(module, _BatchNorm):
        return name in ("weight", "bias")
    return (is_prunable(module) and name == "bias") or name == "theta"


def _atoms_of(units: Channels, pool: int, graph: Graph) -> dict[int, int]:
    """The unit of each atom on the output axes of a pool's layers."""
    found: dict[int, int] = {}
    for i, index in units.rows[pool]:
        layer = units.layers[i]
        atoms = graph.rows[id(layer.parameter)].get(output_axis(layer.module))
        if atoms is not None:
            found |= {atom: unit for unit, atom in enumerate(atoms[index].tolist())}
    return found


def _traced(units: Channels, pool: int, graph: Graph) -> list[Place]:
    """Entries of all vectors that belong to the units of a pool.

    Where the pool has all that is tied to its channels, everything tied is silenced; else the
    layer's own bias, and the normalisation of its output alone.
    """
    of_atom = _atoms_of(units, pool, graph)
    whole = _is_whole(units, graph, set(of_atom))
    roots = {graph.atoms.find(atom): unit for atom, unit in of_atom.items()}
    places = []
    for module in units.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            reads = whole and name == "weight" and hasattr(module, "skip_zeros")
            if not (reads or _silenced(module, name)):
                continue
            for axis, atoms in graph.rows.get(id(parameter), {}).items():
                if reads and axis == output_axis(module):
                    continue
                before = graph.follows.get(id(parameter), atoms)
                if whole:
                    found = [roots.get(graph.atoms.find(atom)) for atom in atoms.tolist()]
                elif isinstance(module, _BatchNorm):
                    found = [of_atom.get(atom) for atom in before.tolist()]
                else:
                    found = [_unit_of(units, pool, module, entry) for entry in range(len(atoms))]
                pairs = [(unit, entry) for entry, unit in enumerate(found) if unit is not None]
                if pairs:
                    numbers = torch.tensor(pairs).t()
                    places.append(Place(module, name, axis, numbers[1], numbers[0]))
    return places


class Shrinking(NamedTuple):
    """An axis of a product: its length, and by pool how many entries go with each unit."""

    length: int
    entries: dict[int, int]


def _axes(units: Channels, product: Product, graph: Graph) -> list[Shrinking]:
    """What :func:`~sj_ext.pruning.shrink` takes from a product with the units of each pool."""
    free = graph.atoms.families()
    found = []
    for atoms in product.axes:
        roots = [graph.atoms.find(atom) for atom in atoms.tolist()]
        entries = {}
        for pool in range(len(units.rows)):
            of_atom = _atoms_of(units, pool, graph)
            if not _is_whole(units, graph, set(of_atom)):
                continue
            mine = {graph.atoms.find(atom): unit for atom, unit in of_atom.items()}
            counts = Counter(mine[root] for root in roots if root in mine and root in free)
            least = min((counts[unit] for unit in range(len(units.rows[pool][0][1]))), default=0)
            if least:
                entries[pool] = least
        if entries:
            found.append(Shrinking(len(roots), entries))
    return found


def _columns(units: Channels, pool: int) -> list[tuple[torch.Tensor, int]]:
    """Weights whose entries on the input axis are silenced with a unit, and how many."""
    found = []
    for place in units._vectors(pool):
        weight = getattr(place.module, place.name)
        if place.axis == 1 and weight.dim() > 1:
            counts = place.units.bincount(minlength=len(units.rows[pool][0][1]))
            found.append((weight, int(counts.min())))
    return found


def _is_whole(units: Channels, graph: Graph, atoms: set[int]) -> bool:
    """No other layer makes channels that these are tied to."""
    producers = producing(units.model)
    mine = {graph.atoms.find(atom) for atom in atoms}
    for atom, place in enumerate(graph.atoms.place):
        if place is None or producers.get(place[0]) != place[1]:
            continue
        if graph.atoms.find(atom) in mine and atom not in atoms:
            return False
    return True


def _unit_of(units: Channels, pool: int, module: nn.Module, row: int) -> int | None:
    """The unit of a pool that has this row of the module."""
    for i, index in units.rows[pool]:
        if units.layers[i].module is module:
            hit = (index == row).nonzero()
            return int(hit[0]) if len(hit) else None
    return None


def _declared(units: Channels, pool: int) -> list[Place]:
    """Bias, and the normalisation that stands right after the layer in the same parent."""
    places = []
    for i, index in units.rows[pool]:
        module = units.layers[i].module
        norm = _next_norm(units.model, module)
        for owner, names in ((module, ("bias",)), (norm, ("weight", "bias"))):
            for name in names:
                if owner is not None and getattr(owner, name) is not None:
                    places.append(Place(owner, name, 0, index, torch.arange(len(index))))
    return places


def _next_norm(model: nn.Module, layer: nn.Module) -> _BatchNorm | None:
    size = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    for parent in model.modules():
        children = list(parent.children())
        for module, after in itertools.pairwise(children):
            if module is layer and isinstance(after, _BatchNorm) and after.num_features == size:
                return after
    return None
