"""Parameters whose size comes from the first input, in checkpoints, by PyTorch's convention."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter

__all__ = ["LazyParametersInCheckpoints", "is_lazy"]


def is_lazy(parameter: object) -> bool:
    """As torch's ``is_lazy``, in a form that ``torch.compile`` traces."""
    return isinstance(parameter, UninitializedParameter)


#: stands for the module that the mixin is mixed into
_Mixin: Any = object


class LazyParametersInCheckpoints(_Mixin):
    """Mixin for a module: parameters without a size are saved as they are, and sized when loaded.

    A subclass defines :meth:`_make_parameter`.
    """

    _parameters: dict[str, torch.nn.Parameter | None]

    def _make_parameter(self, name: str, shape: torch.Size) -> None:
        """Give the lazy parameter ``name`` the shape that a checkpoint has for it."""
        raise NotImplementedError

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        parameters = self._parameters
        lazy = {name: p for name, p in parameters.items() if is_lazy(p)}
        # a parameter without a size cannot be detached, which the base would do
        self._parameters = {name: p for name, p in parameters.items() if name not in lazy}
        try:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        finally:
            self._parameters = parameters
        destination.update({prefix + name: p for name, p in lazy.items()})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, parameter in self._parameters.items():
            saved = state_dict.get(prefix + name)
            if is_lazy(parameter) and saved is not None and not is_lazy(saved):
                self._make_parameter(name, saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
