"""Products with weights that are not computed again, since what they gave is on record.

A convolution or a linear layer needs its input and its weights to go back, and not its output,
which what stands after it needs. So a module whose output is known runs by its own forward, and
autograd notes it as ever; only where PyTorch would multiply it gets the output in place of that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Products", "Recalled"]

_aten: Any = torch.ops.aten
#: which argument of a product holds the samples
_SAMPLES = {_aten.convolution.default: 0, _aten.addmm.default: 1, _aten.mm.default: 0}


class Products(TorchDispatchMode):
    """Counts the bytes of what products give."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _SAMPLES:
            self.bytes += out.numel() * out.element_size()
        return out


class Recalled(TorchDispatchMode):
    """While it lasts, the product of one module gives what it gave before.

    Args:
        module: a convolution or a linear layer.
        output: what it returned.
    """

    def __init__(self, module: nn.Module, output: torch.Tensor):
        super().__init__()
        self.output = output
        # of a biased layer this is only a part of the output
        self.partial = None if getattr(module, "bias", None) is None else _aten.mm.default

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _SAMPLES or func is self.partial:
            return func(*args, **(kwargs or {}))
        samples = args[_SAMPLES[func]]
        return self.output.reshape(len(samples), *self.output.shape[1 - samples.dim() :])
