"""Parameters whose size comes from the first input, in checkpoints, by PyTorch's convention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter

__all__ = ["LazyParameter", "LazyParametersInCheckpoints", "is_lazy", "made_for_training"]


class LazyParameter(UninitializedParameter):
    """A parameter without a size, whose errors name it and say how it gets one.

    Args:
        name: the attribute that it is.
        *args: device and dtype, as PyTorch passes them on in a copy.
        **kwargs: the same by name.
    """

    def __new__(cls, name: Any = "theta", *args: Any, **kwargs: Any) -> LazyParameter:
        if not isinstance(name, str):  # PyTorch's copies begin with requires_grad
            return super().__new__(cls, name, *args, **kwargs)
        parameter: LazyParameter = super().__new__(cls, *args, **kwargs)
        parameter.lazy_name = name
        return parameter

    lazy_name: str = "theta"

    def share_memory_(self) -> Any:
        """There is nothing to share yet."""
        raise RuntimeError(_no_size(self.lazy_name))

    @property
    def shape(self) -> Any:  # type: ignore[override]
        """There is none yet."""
        raise RuntimeError(_no_size(self.lazy_name))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except (RuntimeError, ValueError) as error:
            if "ninitialized" not in str(error):
                raise
            names = [one.lazy_name for one in args if isinstance(one, LazyParameter)]
            raise ValueError(_no_size(*names[:1])) from None

    def __reduce_ex__(self, proto: Any) -> Any:
        return UninitializedParameter, (self.requires_grad,)


def _no_size(name: str = "theta") -> str:
    return (
        f"{name} has no size yet: it gets one from the first input, or before by "
        "sj_ext.materialize(model, example_input), or by "
        "sj_ext.swap_neurons(..., example_input=example_input)"
    )


@contextlib.contextmanager
def made_for_training() -> Iterator[None]:
    """What is made within can be trained, under ``torch.inference_mode`` too."""
    with torch.inference_mode(False), torch.no_grad():
        yield


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

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """As PyTorch's, which has words of its own for a parameter that cannot be swapped."""
        lazy = {name: p for name, p in self._parameters.items() if is_lazy(p)}
        with torch.no_grad():
            applied = {name: fn(parameter) for name, parameter in lazy.items()}
        sized = {name: p for name, p in self._parameters.items() if name not in lazy}
        everything, self._parameters = self._parameters, sized
        try:
            super()._apply(fn)  # a host's takes nothing else
        finally:
            everything.update(self._parameters)
            self._parameters = everything
        for name, parameter in lazy.items():
            new = applied[name]
            if parameter is None:
                continue
            try:
                parameter.data = new  # the same object, which an optimizer may hold
            except RuntimeError:  # to or from the meta device
                learns, at = parameter.requires_grad, {"device": new.device, "dtype": new.dtype}
                made: Any = LazyParameter(name, requires_grad=learns, **at)
                self._parameters[name] = made
        return self

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
