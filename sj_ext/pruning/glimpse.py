"""The first input that a network is given in training."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["Glimpse"]


class Glimpse:
    """Waits for the first forward pass of a network and keeps what it was given.

    The hook is PyTorch's for all modules, so that none stays on the network.

    Args:
        model: the network; a wrapper around it calls it too.
    """

    def __init__(self, model: nn.Module):
        self._model = weakref.ref(model)
        self._seen: Any = None
        reference = weakref.ref(self)  # WeakMethod would break a compiled graph

        def hook(module: nn.Module, args: Any) -> None:
            if (alive := reference()) is not None:
                alive._look(module, args)

        self._handle: Any = register_module_forward_pre_hook(hook)
        weakref.finalize(self, self._handle.remove)

    def _look(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # in a graph; what is around it has been here before
            return
        inside = getattr(module, "_orig_mod", module)
        if inside is self._model() and args and self._seen is None:
            self._seen = args
            self._handle.remove()

    def take(self) -> Any:
        """What was seen, or None; the hook is taken off."""
        self._handle.remove()
        seen, self._seen = self._seen, None
        return seen
