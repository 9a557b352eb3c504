"""What a call keeps for the pass that undoes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ...ops.layouts import Layout
from ...ops.windows import Window
from .anchors import anchor_steps
from .dynamics import Call, Observer, run_level
from .fingerprints import Fingerprints
from .graphs import Graph, Graphs
from .needs import Needs
from .randomness import RandomState, Start

__all__ = ["Options", "Recorder", "Trace"]


@dataclass(frozen=True)
class Options:
    """How potentials are rebuilt and how a replay is checked."""

    #: error that a rebuilt potential may have, relative to the largest potential
    tolerance: float
    #: relative difference from which an output that is computed again counts as another one
    replay_tolerance: float | None
    #: levels that keep their graph and are not run again
    kept_levels: frozenset[int] = frozenset()


@dataclass
class Trace:
    """What is on record of one level over one span; tensors by their place among the kept ones."""

    #: of F's output
    shape: torch.Size | None = None
    #: what random numbers started from: places of the generators' states, a seed, or None
    start: list[int] | int | None = None
    fingerprint: int | None = None
    layout: Layout | None = None
    spikes: int | None = None
    window: int | None = None
    #: exact potentials by step
    potentials: dict[int, int] = field(default_factory=dict)
    #: of a level that is not run again
    graph: Graph | None = None


class Recorder(Observer):
    """Keeps, of every level and span, what undoing it will ask for."""

    def __init__(
        self,
        call: Call,
        options: Options,
        needs: Needs,
        decays: Sequence[torch.Tensor],
        device: torch.device,
        graphs: Graphs,
    ):
        self.call, self.needs, self.options = call, needs, options
        #: the surrogate's window if it is rectangular, None for any other surrogate
        self.window = Window.of(call.surrogate_function)
        self.random = RandomState(device)
        self.tensors: list[torch.Tensor] = []
        self.dtypes = [torch.get_default_dtype()] * call.num_levels
        self._traces = {
            (span, level): Trace() for span in call.spans for level in range(call.num_levels)
        }
        self._fingerprints = Fingerprints()
        self._anchor_steps: dict[int, frozenset[int]] = {}
        self._smallest: list[float] | None = None
        self._decays: Sequence[torch.Tensor] = decays
        self._graphs: Graphs | None = graphs

    def trace(self, span: range, level: int) -> Trace:
        """The record of a level over a span."""
        return self._traces[span, level]

    def potential(self, t: int, level: int) -> int | None:
        """Place of the exact potential of a step, None if it was not kept."""
        return self._traces[self.call.span_of(t), level].potentials.get(t)

    def decay_by_outputs(self, level: int) -> bool:
        """Whether a decay's gradient comes from F's outputs, which needs no potential.

        It does where the decay is the same at every step and the outputs are computed again.
        """
        shared = len({column[level] for column in self.call.decay_index}) == 1
        return shared and not self.keeps_graph(level)

    def keeps_graph(self, level: int) -> bool:
        """Whether a level's graph is kept, so that it is not run again."""
        return level in self.options.kept_levels

    def run(
        self,
        call: Call,
        span: range,
        level: int,
        below: torch.Tensor,
        above: torch.Tensor | None,
    ) -> torch.Tensor:
        needs = self.needs
        if self._graphs is None or not (self.keeps_graph(level) and needs.of(span, level)):
            return run_level(call, span, level, below, above)
        learns = needs.below(span, level), needs.above(span, level)
        f, graph = self._graphs.run(call, span, level, (below, above), learns)
        self.trace(span, level).graph = graph
        return f

    def ran(
        self, span: range, level: int, f: torch.Tensor, u: Sequence[torch.Tensor], start: Start
    ) -> None:
        self.dtypes[level] = u[0].dtype
        if not self.needs.of(span, level):
            return
        trace = self.trace(span, level)
        if not self.keeps_graph(level):
            trace.shape = f.shape
            trace.start = [self._keep(x) for x in start] if isinstance(start, list) else start
            if self.options.replay_tolerance is not None:
                trace.fingerprint = self._keep(self._fingerprints.of(f))
        for t, potential in zip(span, u, strict=True):
            if t in self._anchors(level):
                trace.potentials[t] = self._keep(potential.detach())

    def fired(self, span: range, level: int, u: torch.Tensor, spikes: torch.Tensor) -> None:
        if not self.needs.readers(span, level):
            return
        trace = self.trace(span, level)
        trace.layout = Layout.like(u)
        if not all(self.keeps_graph(reader) for reader in (level - 1, level + 1)):
            trace.spikes = self._keep(trace.layout.pack(spikes != 0))
        if self.window is not None and self.needs.of(span, level):
            above = trace.layout.ordered(u - self.call.v_threshold)
            trace.window = self._keep(self.window.pack(above))

    def let_go(self) -> None:
        """Forget the tensors, which autograd keeps from here on."""
        self.tensors, self._decays, self._graphs = [], [], None
        self._fingerprints = Fingerprints()

    def _keep(self, tensor: torch.Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _anchors(self, level: int) -> frozenset[int]:
        """Steps of a level whose potential is kept."""
        if level not in self._anchor_steps:
            last = self._last_potential(level)
            self._anchor_steps[level] = frozenset()
            if self.keeps_graph(level):  # no output is there to rebuild potentials from
                self._anchor_steps[level] = frozenset(range(last + 1))
            elif last >= 0:
                if self._smallest is None:  # all in one go: on a GPU every look waits for it
                    magnitudes = [a.detach().abs().min().double() for a in self._decays]
                    self._smallest = torch.stack(magnitudes).tolist()
                smallest = min(self._smallest[column[level]] for column in self.call.decay_index)
                self._anchor_steps[level] = anchor_steps(
                    last, smallest, self.dtypes[level], self.options.tolerance
                )
        return self._anchor_steps[level]

    def _last_potential(self, level: int) -> int:
        """The last step whose potential undoing this level needs, -1 for none at all."""
        call = self.call
        if self.window is None and any(call.has_consumer(span, level) for span in call.spans):
            return call.num_steps - 1
        used = {column[level] for column in call.decay_index}
        if not self.decay_by_outputs(level) and any(self.needs.decays[i] for i in used):
            return call.num_steps - 2
        return -1
