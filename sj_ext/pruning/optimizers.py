"""Every optimizer's step, found by PyTorch's own hooks, whoever made and wrapped the optimizer."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

__all__ = ["after_every_step"]

Listener = Callable[[Optimizer, list[torch.Tensor], bool], None]

_LISTENERS: list[Any] = []


def after_every_step(listener: Listener) -> None:
    """Call ``listener(optimizer, parameters, stepped)`` after each step of any optimizer.

    ``stepped`` is False where AMP found infinities and a fused optimizer skipped the update inside.
    A bound method is called for as long as its object lives.

    Args:
        listener: is registered once, however often this is called.
    """
    if not _LISTENERS:
        register_optimizer_step_post_hook(_after_step)
    bound = hasattr(listener, "__self__")
    reference: Any = weakref.WeakMethod(listener) if bound else lambda: listener
    if not any(known() == listener for known in _LISTENERS):
        _LISTENERS.append(reference)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    found = getattr(optimizer, "found_inf", None)
    stepped = found is None or not bool(found)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for reference in list(_LISTENERS):
        listener = reference()
        if listener is None:
            with contextlib.suppress(ValueError):  # another thread has seen it too
                _LISTENERS.remove(reference)
        else:
            listener(optimizer, parameters, stepped)
