"""When a step counts: only where an optimizer has changed the weights."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from . import masks, optimizers, sharding
from .resources import LayerInfo

__all__ = ["StepCounter", "identity"]

#: changes that no optimizer made, after which a user hears of it
PATIENCE = 5
#: values by which a write that raises no version counter is noticed
SAMPLE = 64


def identity(layer: LayerInfo) -> int:
    """The id of the parameter that an optimizer has, also while a sharded one is whole."""
    parameter = masks.own_mask(layer.module, layer.attribute).parameter
    return id(layer.parameter if parameter is None else parameter)


class StepCounter:
    """Notices steps on some weights, by any optimizer's hook or by the change of the weights.

    Once an optimizer has been seen to step on these weights, only optimizers count. Before that,
    for loops that write the weights themselves, a change is one of a version counter or, for writes
    through ``.data``, of a sample of the values.

    Args:
        layers: whose weights change.
        optimizer: whose learning rates are used; None for none.
    """

    def __init__(self, layers: Sequence[LayerInfo], optimizer: Optimizer | None):
        self.layers = list(layers)
        self.optimizer = optimizer
        self._latest: weakref.ref[Optimizer] | None = None
        self._stepped = self._warned = False
        self._waited = 0
        self._versions: list[int] = []
        self._values: list[torch.Tensor] = []
        optimizers.after_every_step(self.optimizer_stepped)
        self.forget()

    def optimizer_stepped(
        self, optimizer: Optimizer, parameters: list[torch.Tensor], stepped: bool
    ) -> None:
        """Called after the step of any optimizer."""
        ours = {id(layer.parameter) for layer in self.layers}
        mine = [p for p in parameters if id(p) in ours]
        if mine:
            self._latest = weakref.ref(optimizer)
            # without a gradient an optimizer leaves a weight alone
            self._stepped |= stepped and any(p.grad is not None for p in mine)

    @property
    def stepped(self) -> bool:
        """The weights have been stepped on since :meth:`forget`."""
        if self._stepped:
            return True
        versions = [layer.parameter._version for layer in self.layers]
        changed, self._versions = versions != self._versions, versions
        if self._latest is None and not changed:
            values = self._sample()
            changed = any(not torch.equal(a, b) for a, b in zip(self._values, values, strict=True))
        elif self._latest is not None:
            self._wait(changed)
            return False
        return changed

    def forget(self) -> None:
        """Begin to look anew."""
        self._stepped, self._waited = False, 0
        self._versions = [layer.parameter._version for layer in self.layers]
        self._values = self._sample() if self._latest is None else []

    def rates(self) -> dict[int, float]:
        """Learning rate by the parameter's id: of the optimizer given, or that took its place."""
        if self.optimizer is None:
            return {}
        latest = None if self._latest is None else self._latest()
        groups = [*self.optimizer.param_groups, *(latest.param_groups if latest else [])]
        return {id(p): float(group["lr"]) for group in groups for p in group["params"]}

    def _sample(self) -> list[torch.Tensor]:
        found = []
        for layer in self.layers:
            flat = sharding.local(layer.parameter).detach().flatten()
            found.append(flat[:: max(1, len(flat) // SAMPLE)].clone())
        return found

    def _wait(self, changed: bool) -> None:
        self._waited += changed
        if self._waited >= PATIENCE and not self._warned:
            self._warned = True
            warnings.warn(
                f"the weights of the pruned layers changed {PATIENCE} times and no torch.optim "
                "optimizer has stepped on them: pruner.step() does not count that. Step with an "
                "optimizer that holds the parameters of the model that the pruner was built with, "
                "or build a new pruner and load the state of this one",
                stacklevel=4,
            )
