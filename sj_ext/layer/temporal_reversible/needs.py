"""What autograd would find to require a gradient, had it a graph of the whole call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .dynamics import Call

__all__ = ["Needs"]


class Needs:
    """Whether inputs, states, decays and potentials need a gradient.

    Args:
        call: what runs.
        inputs: for each input tensor.
        states: for the state of each level before the call.
        decays: for each decay.
        parameters: for each of ``call.parameters()``.
    """

    def __init__(
        self,
        call: Call,
        inputs: Sequence[bool],
        states: Sequence[bool],
        decays: Sequence[bool],
        parameters: Sequence[bool],
    ):
        self.call, self.inputs, self.states, self.decays = call, inputs, states, decays
        learned = _learned_modules(call, parameters)
        self._spans: dict[tuple[range, int], bool] = {}
        for span in call.spans:
            for level in range(call.num_levels):
                self._spans[span, level] = (
                    self.below(span, level)
                    or self.above(span, level)
                    or any(decays[call.decay(t, level)] for t in span)
                    or call.module(span, level) in learned
                    or self.of(call.before(span), level)
                )

    def of(self, span: range | None, level: int) -> bool:
        """Whether a level's potential over a span does; None is the state before the call."""
        return self.states[level] if span is None else self._spans[span, level]

    def below(self, span: range, level: int) -> bool:
        """Whether what a level reads from below does."""
        if level:
            return self.of(span, level - 1)
        return any(self.inputs[i] for i in self.call.inputs_read(span))

    def above(self, span: range, level: int) -> bool:
        """Whether what a level reads from above does."""
        top = level + 1 == self.call.num_levels
        return self.call.feedback and not top and self.of(self.call.before(span), level + 1)

    def readers(self, span: range, level: int) -> bool:
        """Whether a level that is undone reads the spikes of a span."""
        if not self.call.has_consumer(span, level):
            return False
        later = self.call.after(span)
        below = level + 1 < self.call.num_levels and self.of(span, level + 1)
        above = self.call.feedback and level >= 1 and later is not None
        return below or (above and self.of(later, level - 1))


def _learned_modules(call: Call, needed: Sequence[bool]) -> set[torch.nn.Module]:
    """Modules with a parameter that needs a gradient; all, if the surrogate has one."""
    needs = {id(p): need for p, need in zip(call.parameters(), needed, strict=True)}
    modules = {module for column in call.modules for module in column}
    if any(needs[id(p)] for p in call.surrogate_parameters()):
        return modules
    return {module for module in modules if any(needs[id(p)] for p in module.parameters())}
