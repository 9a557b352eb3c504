"""When a step counts: only where the optimizer has changed the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .masks import parameter_of

__all__ = ["StepCounter"]


class StepCounter:
    """Notices the optimizer's steps: by its own hook, or by the change of the weights.

    Args:
        modules: layers whose weights change.
        optimizer: whose steps count; None for any change.
    """

    def __init__(self, modules: Sequence[nn.Module], optimizer: Optimizer | None):
        self.modules = list(modules)
        self.optimizer = optimizer
        self._hooked = False
        if optimizer is not None:
            optimizer.register_step_post_hook(self._after_optimizer)
        self.forget()

    @property
    def stepped(self) -> bool:
        """The optimizer has stepped since :meth:`forget`."""
        if self.optimizer is not None:
            return self._hooked
        return self._versions != [parameter_of(module)._version for module in self.modules]

    def forget(self) -> None:
        """Begin to look anew."""
        self._hooked = False
        self._versions = [parameter_of(module)._version for module in self.modules]

    def _after_optimizer(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # fused optimizers are called even if AMP found infinities, and skip the update themselves
        found = getattr(optimizer, "found_inf", None)
        if found is None or not bool(found):
            self._hooked = True
