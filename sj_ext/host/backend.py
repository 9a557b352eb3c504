"""Where a neuron runs, as a contract: where it was told to, or it raises with the reason."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from types import FunctionType
from typing import Any

import torch
from torch import nn

from .. import checks
from .generation import VERSION

__all__ = ["BackendContract", "HostsChoice", "own_surrogate"]

#: stands for the neuron of the host that the mixins below are mixed into
Mixin: Any = object


class HostsChoice(Mixin):
    """A neuron of a host that chooses its kernels by itself."""

    def __init__(self, *args: Any, **kwargs: Any):
        if "backend" in kwargs and not hasattr(type(self), "supported_backends"):
            raise TypeError(
                f"{type(self).__name__} takes no backend: SpikingJelly {VERSION} chooses its "
                f"kernels by itself; leave the argument out"
            )
        super().__init__(*args, **kwargs)
        own_surrogate(self)

    def check_backend(self, x: torch.Tensor) -> None:
        """Every input runs."""


def own_surrogate(node: Any) -> None:
    """Give a module that was given no surrogate a copy of the default, which all others share.

    A default argument is one object: what is done to it through one node (a change of its constant,
    ``.to()``, the marks of FSDP) would be done to the surrogates of all.
    """
    held = getattr(node, "surrogate_function", None)
    defaults = [default for cls in type(node).__mro__ for default in _defaults(cls)]
    if isinstance(held, nn.Module) and any(default is held for default in defaults):
        node.surrogate_function = copy.deepcopy(held)


def _defaults(cls: type) -> list[Any]:
    """The default arguments of a class's own constructor."""
    make = inspect.unwrap(vars(cls).get("__init__", cls))
    if not isinstance(make, FunctionType):
        return []
    return [*(make.__defaults__ or ()), *(make.__kwdefaults__ or {}).values()]


class BackendContract(HostsChoice):
    """``backend`` as a contract: a node runs where it was told to, or raises with the reason."""

    #: dtypes that the CuPy kernels of this node take
    cupy_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16)

    @property
    def backend(self) -> str:
        """The backend that runs this node: ``'torch'`` or, where supported, ``'cupy'``."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        where = f"backend of {type(self).__name__} in step mode {self.step_mode!r}"
        checks.choice(where, value, self.supported_backends)
        if value == "cupy" and importlib.util.find_spec("cupy") is None:
            raise RuntimeError(
                "backend='cupy' needs CuPy, which is not installed: install cupy-cuda12x or "
                "cupy-cuda13x, or use backend='torch'"
            )
        self._backend = value

    def check_backend(self, x: torch.Tensor) -> None:
        """Raise if the chosen backend cannot run ``x``.

        Raises:
            RuntimeError: ``backend='cupy'`` and ``x`` is not on a CUDA device.
            TypeError: ``backend='cupy'`` and the kernels do not take the dtype of ``x``.
        """
        if self._backend != "cupy":
            return
        if not x.is_cuda:
            raise RuntimeError(
                f"backend='cupy' of {type(self).__name__} runs on a CUDA device only, got a tensor "
                f"on {x.device}: move the model and its input with .cuda(), or use backend='torch'"
            )
        if x.dtype not in self.cupy_dtypes:
            raise TypeError(
                f"backend='cupy' of {type(self).__name__} takes {list(self.cupy_dtypes)}, "
                f"got {x.dtype}"
            )
