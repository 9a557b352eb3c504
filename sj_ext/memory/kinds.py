"""What a module can be in a segment: a map of each sample, a batch norm, or a neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import host

__all__ = ["Step", "entered_through_hooks", "is_container", "kind_of", "steps_of", "why_not"]

_MAPS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.GroupNorm,
)
_LINEAR_MAPS = _MAPS[:7]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _with_host(classes: tuple[type, ...]) -> frozenset[type]:
    own = (getattr(host.layer, cls.__name__, cls) for cls in classes)
    return frozenset((*classes, *own))


_MAP_CLASSES, _NORM_CLASSES = _with_host(_MAPS), _with_host(_NORMS)


@dataclass
class Step:
    """One module of a segment.

    Attributes:
        kind: ``'map'``, ``'norm'`` or ``'neuron'``.
        folded: whether the module gets time and batch as one axis.
    """

    name: str
    module: nn.Module
    kind: str
    folded: bool

    @property
    def linear(self) -> bool:
        """Whether it is a convolution or another linear map with weights."""
        return isinstance(self.module, _LINEAR_MAPS)

    @property
    def over_batch(self) -> bool:
        """Whether it is a batch norm that takes its statistics from the batch at hand."""
        if self.kind != "norm":
            return False
        norm: Any = self.module
        return norm.training or norm.running_mean is None

    @property
    def sequences(self) -> bool:
        """Whether the module is given ``[T, N, *]``."""
        single = self.kind != "neuron" and getattr(self.module, "step_mode", "s") == "s"
        return self.folded or not single

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The module's own forward, without hooks."""
        forward: Any = type(self.module).forward
        if not self.folded:
            return forward(self.module, x)
        return self.unfold(forward(self.module, x.flatten(0, 1)), x)

    def fold(self, z: torch.Tensor) -> torch.Tensor:
        """``z`` as ``[N, C, *]``, for a batch norm."""
        return z.flatten(0, 1) if self.sequences else z

    def unfold(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Time and batch, which :meth:`fold` made one axis, as the two that ``like`` has."""
        return y.reshape(*like.shape[:2], *y.shape[1:]) if self.sequences else y


def is_container(module: nn.Module) -> bool:
    """Whether the module runs its children in turn on time and batch as one axis."""
    return type(module) is host.layer.SeqToANNContainer and len(list(module.children())) > 0


def kind_of(module: nn.Module) -> str | None:
    """``'map'``, ``'norm'``, ``'neuron'``, or None for what cannot be in a segment."""
    if type(module) in _MAP_CLASSES:
        return "map"
    if type(module) in _NORM_CLASSES:
        return "norm"
    if isinstance(module, host.neuron.BaseNode) or type(module).__name__ == "TurnOffNode":
        return "neuron"
    return None


def steps_of(name: str, module: nn.Module) -> list[Step] | None:
    """The steps that a module or a container stands for, None if it cannot be in a segment."""
    if is_container(module):
        kinds = [kind_of(child) for child in module.children()]
        if any(kind not in ("map", "norm") for kind in kinds):
            return None
        return [
            Step(f"{name}.{key}", child, str(kind), folded=True)
            for (key, child), kind in zip(module.named_children(), kinds, strict=True)
        ]
    kind = kind_of(module)
    return None if kind is None else [Step(name, module, kind, folded=False)]


def why_not(step: Step) -> str | None:
    """Why a step cannot be run in a segment as things stand now; None if it can."""
    module: Any = step.module
    for hooks in _HOOKS:
        if getattr(module, hooks, None):
            return f"{step.name} has hooks"
    if getattr(module, "return_indices", False):
        return f"{step.name} returns indices"
    if step.kind != "neuron":
        return None
    if module.step_mode != "m":
        return f"{step.name} runs step by step"
    if getattr(module, "store_v_seq", False):
        return f"{step.name} stores its potentials"
    if getattr(module, "backend", "torch") != "torch":
        return f"{step.name} runs on the backend {module.backend!r}"
    if not module.training:
        return f"{step.name} is in evaluation mode"
    return None


def entered_through_hooks(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether a container that has some of these modules, not all of them, has hooks.

    They would see what is not computed, and FSDP gathers parameters in such hooks.
    """
    paths = [_containers(name) for name in names]
    some: set[str] = set().union(*paths)
    some.difference_update(paths[0].intersection(*paths))
    return any(getattr(model.get_submodule(path), hooks, None) for path in some for hooks in _HOOKS)


def _containers(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
