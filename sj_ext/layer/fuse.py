"""Merging linear maps that follow each other, for inference."""

from __future__ import annotations

import copy

from torch import nn

from ..arguments import checked

__all__ = ["Fusable", "fuse"]


class Fusable(nn.Module):
    """A part that :func:`fuse` can replace by a simpler one with the same output in evaluation.

    Shapes:
        those of the part, ``[T, N, *]`` or ``[N, *]``.
    """

    def fused(self) -> nn.Module:
        """The simpler part; it may share tensors with this one."""
        raise NotImplementedError(f"{type(self).__name__} must define fused()")


@checked
def fuse(model: nn.Module) -> nn.Module:
    """A copy of a network for inference, in which linear maps that follow each other are one.

    Batch normalisations go into the convolution before them, :class:`RepConv` becomes one 3 x 3
    convolution, :class:`SepConv` reads spikes only. Outputs are equal up to the rounding of sums in
    another order, which can move a spike where a potential is that near to its threshold. ``model``
    stays as it is.

    Args:
        model: any network with parts of :mod:`sj_ext.layer` in it.

    Shapes:
        The network's own, unchanged.

    Raises:
        RuntimeError: ``model`` is in training mode, where normalisations follow the batch, or
            has no part that can be merged.
    """
    if model.training:
        raise RuntimeError("fuse needs a model in evaluation mode: call model.eval() first")
    found = _fused_within(copy.deepcopy(model))
    if found is None:
        raise RuntimeError(f"fuse has found nothing to merge in a {type(model).__name__}")
    return found


def _fused_within(module: nn.Module) -> nn.Module | None:
    """The module with its parts merged, or None where it has none."""
    if isinstance(module, Fusable):
        return module.fused()
    changed = False
    for name, child in module.named_children():
        new = _fused_within(child)
        if new is not None:
            setattr(module, name, new)
            changed = True
    return module if changed else None
