"""What a call keeps for the pass that undoes it, and what of it will be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ops.windows import Window
from .dynamics import Call, Observer
from .record import Bits, Fingerprints, anchor_steps
from .replay import RandomState, Start

__all__ = ["Needs", "Options", "Recorder"]


@dataclass(frozen=True)
class Options:
    """How potentials are rebuilt and how a replay is checked."""

    #: error that a rebuilt potential may have, relative to the largest potential
    tolerance: float
    #: relative difference from which an output that is computed again counts as another one
    replay_tolerance: float | None


class Needs:
    """What autograd would find to require a gradient."""

    def __init__(
        self,
        call: Call,
        inputs: Sequence[bool],
        states: Sequence[bool],
        decays: Sequence[bool],
        of_modules: Sequence[Sequence[bool]],
    ):
        self.inputs, self.states, self.decays = inputs, states, decays
        #: potential[span][level]
        self.potential: list[list[bool]] = []
        before: Sequence[bool] = states
        for span in call.spans:
            now: list[bool] = []
            for level in range(call.num_levels):
                below = now[-1] if level else any(inputs[i] for i in call.inputs_read(span))
                above = call.feedback and level + 1 < call.num_levels and before[level + 1]
                decay = any(decays[call.decay_index[t][level]] for t in span)
                now.append(below or above or decay or of_modules[span[0]][level] or before[level])
            self.potential.append(now)
            before = now

    def of(self, span: int, level: int) -> bool:
        return self.states[level] if span < 0 else self.potential[span][level]

    def readers(self, call: Call, span: int, level: int) -> bool:
        """Whether a level that is undone reads the spikes of a span."""
        if not call.has_consumer(span, level):
            return False
        below = span >= 0 and level + 1 < call.num_levels and self.potential[span][level + 1]
        above = level >= 1 and span + 1 < len(call.spans) and self.potential[span + 1][level - 1]
        return below or above


class Recorder(Observer):
    """Keeps, of every level and span, what undoing it will ask for."""

    def __init__(
        self,
        call: Call,
        options: Options,
        needs: Needs,
        decays: Sequence[torch.Tensor],
        device: torch.device,
    ):
        self.call, self.needs, self.options = call, needs, options
        #: the surrogate's window if it is rectangular, None for any other surrogate
        self.window = Window.of(call.surrogate_function)
        self.random = RandomState(device)
        self._fingerprints = Fingerprints()
        # places among the kept tensors:
        self.tensors: list[torch.Tensor] = []
        self.spikes: dict[tuple[int, int], int] = {}
        self.windows: dict[tuple[int, int], int] = {}
        self.fingerprints: dict[tuple[int, int], int] = {}
        #: places of the generators' states, or the seed
        self.starts: dict[tuple[int, int], list[int] | int] = {}
        #: by (step, level), not by span
        self.potentials: dict[tuple[int, int], int] = {}
        self.layouts: dict[tuple[int, int], Bits] = {}
        self.shapes: dict[tuple[int, int], torch.Size] = {}
        self.dtypes = [torch.get_default_dtype()] * call.num_levels
        self.anchors: dict[int, frozenset[int]] = {}
        self._smallest: list[float] | None = None
        self.shared_decay = [
            len({column[level] for column in call.decay_index}) == 1
            for level in range(call.num_levels)
        ]
        self._decays: Sequence[torch.Tensor] = decays

    def _keep(self, tensor: torch.Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def ran(
        self, span: int, level: int, f: torch.Tensor, u: Sequence[torch.Tensor], start: Start
    ) -> None:
        key = (span, level)
        self.dtypes[level] = u[0].dtype
        if not self.needs.of(span, level):
            return
        self.shapes[key] = f.shape
        if start is not None:
            kept = start if isinstance(start, int) else [self._keep(state) for state in start]
            self.starts[key] = kept
        if self.options.replay_tolerance is not None:
            self.fingerprints[key] = self._keep(self._fingerprints.of(f))
        for t, potential in zip(self.call.spans[span], u, strict=True):
            if t in self._anchors(level):
                self.potentials[t, level] = self._keep(potential.detach())

    def fired(self, span: int, level: int, u: torch.Tensor, spikes: torch.Tensor) -> None:
        if not self.needs.readers(self.call, span, level):
            return
        key = (span, level)
        layout = self.layouts[key] = Bits.like(u)
        self.spikes[key] = self._keep(layout.pack(spikes != 0))
        if self.window is not None and self.needs.of(span, level):
            above = layout.ordered(u - self.call.v_threshold)
            self.windows[key] = self._keep(self.window.pack(above))

    def let_go(self) -> None:
        """Forget the tensors, which autograd keeps from here on."""
        self.tensors, self._decays = [], []
        self._fingerprints = Fingerprints()

    def _anchors(self, level: int) -> frozenset[int]:
        """Steps of a level whose potential is kept."""
        if level not in self.anchors:
            last = self._last_potential(level)
            self.anchors[level] = frozenset()
            if last >= 0:
                if self._smallest is None:  # all in one go: on a GPU every look waits for it
                    magnitudes = [a.detach().abs().min().double() for a in self._decays]
                    self._smallest = torch.stack(magnitudes).tolist()
                smallest = min(self._smallest[column[level]] for column in self.call.decay_index)
                self.anchors[level] = anchor_steps(
                    last, smallest, self.dtypes[level], self.options.tolerance
                )
        return self.anchors[level]

    def _last_potential(self, level: int) -> int:
        """The last step whose potential undoing this level needs, -1 for none at all."""
        steps = self.call.num_steps
        if self.window is None and any(
            self.call.has_consumer(span, level) for span in range(len(self.call.spans))
        ):
            return steps - 1
        used = {column[level] for column in self.call.decay_index}
        if not self.shared_decay[level] and any(self.needs.decays[i] for i in used):
            return steps - 2
        return -1
