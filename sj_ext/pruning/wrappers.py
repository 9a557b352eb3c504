"""Networks inside of wrappers: ``DistributedDataParallel``, ``torch.compile`` and their kin."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["plain_name", "unwrapped", "without_compile"]


def unwrapped(model: Any) -> nn.Module:
    """The network itself, which shares its layers and parameters with the wrapper."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile
            model = model._orig_mod
        else:
            return model


def plain_name(name: str) -> str:
    """The name of a parameter without what wrappers put in front of it and in between."""
    parts = without_compile(name).split(".")
    while parts[:1] == ["module"]:
        del parts[0]
    return ".".join(parts)


def without_compile(name: str) -> str:
    """The name without what ``torch.compile`` puts in between."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
