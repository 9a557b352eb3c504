"""What the losses over time take: logits, targets, class weights, step weights and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks

__all__ = [
    "Target",
    "check_label_smoothing",
    "check_options",
    "check_tet",
    "check_y_seq",
    "checked_lengths",
    "checked_target",
    "checked_weight",
    "step_shares",
]


class Target(NamedTuple):
    """A target that has been checked."""

    #: class indices as int64, or probabilities
    value: Tensor
    #: whether it has a time axis of its own
    per_step: bool
    #: the class index that does not count, if any
    ignore_index: int | None

    @property
    def is_indices(self) -> bool:
        return not self.value.is_floating_point()

    def kept(self) -> Tensor | None:
        """Which entries count; None: all."""
        return None if self.ignore_index is None else self.value != self.ignore_index

    def flat(self) -> Target:
        """Steps and samples on one axis."""
        return self._replace(value=self.value.flatten(0, 1)) if self.per_step else self

    def at(self, index: Any) -> Target:
        """The target of some steps, without a time axis."""
        return self._replace(value=self.value[index], per_step=False) if self.per_step else self


def check_tet(means: float, lamb: float) -> None:
    """Raise TypeError or ValueError unless these are arguments of the TET loss."""
    checks.number("means", means)
    checks.number("lamb", lamb, at_least=0, at_most=1)


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise TypeError or ValueError unless this is a ``label_smoothing``."""
    checks.number("label_smoothing", label_smoothing, at_least=0, at_most=1)


def check_options(ignore_index: int | None, reduction: str) -> None:
    """Raise TypeError or ValueError unless these are options of a loss."""
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index)
    checks.choice("reduction", reduction, ("mean", "sum", "none"))


def check_y_seq(y_seq: Tensor) -> None:
    """Raise TypeError or ValueError unless ``y_seq`` holds logits ``[T, N, C, *]``."""
    if not isinstance(y_seq, Tensor):
        raise TypeError(f"y_seq must be a tensor [T, N, C], got {type(y_seq).__name__}")
    if y_seq.dim() < 3:
        hint = (
            " (a time axis is missing; a model that returns [N, C] in evaluation, as T-RevSNN does,"
            " gives the logits of all steps by its method step_logits)"
            if y_seq.dim() == 2
            else ""
        )
        raise ValueError(
            f"y_seq must have the shape [T, N, C] or, for dense targets, [T, N, C, *], got "
            f"{list(y_seq.shape)}{hint}"
        )
    if y_seq.numel() == 0:
        raise ValueError(
            f"y_seq [T, N, C] needs a step, a sample and a class at least, got {list(y_seq.shape)}"
        )
    if not y_seq.is_floating_point():
        raise TypeError(f"y_seq must be of a floating point dtype, got {y_seq.dtype}")


def checked_target(y_seq: Tensor, target: Tensor, ignore_index: int | None) -> Target:
    """The target of logits ``[T, N, C, *]``, which are checked as well."""
    check_y_seq(y_seq)
    if not isinstance(target, Tensor):
        raise TypeError(
            f"target must be a tensor of class indices [N] or probabilities [N, C], "
            f"got {type(target).__name__}"
        )
    per_step, indices = _kind(y_seq, target)
    if target.device != y_seq.device:
        raise ValueError(
            f"target must be on the device of y_seq, {y_seq.device}, got {target.device}"
        )
    if indices:
        c = y_seq.shape[2]
        right, allowed = (target >= 0) & (target < c), f"class indices from 0 to {c - 1}"
        if ignore_index is not None:
            right, allowed = right | (target == ignore_index), f"{allowed} or {ignore_index}"
        _check_values("target", target, right, allowed, int(per_step))
        return Target(target.long(), per_step, ignore_index)
    if ignore_index is not None:
        raise ValueError(
            f"ignore_index goes with class indices, but target holds probabilities: give them a "
            f"weight or leave ignore_index out, got ignore_index={ignore_index}"
        )
    values = target.detach()
    axis = 1 + per_step
    # wide enough for rows that were rounded to bfloat16
    one = (values.sum(axis, dtype=torch.float32) - 1).abs() <= 1e-2
    right = (values >= 0).all(axis) & one
    allowed = "probabilities from 0 to 1 that add up to 1 for each sample"
    _check_values("target", values, right, allowed, int(per_step), axis)
    return Target(target, per_step, None)


def _kind(y_seq: Tensor, target: Tensor) -> tuple[bool, bool]:
    """Whether a target has a time axis, and whether it holds class indices."""
    t, n, c, *rest = y_seq.shape
    floating = target.is_floating_point()
    kinds = {
        (n, *rest): (False, True),
        (t, n, *rest): (True, True),
        (n, c, *rest): (False, False),
        (t, n, c, *rest): (True, False),
    }
    if (n, c) == (t, n) and not floating:  # [N, C, *] and [T, N, *]: told apart by the dtype
        kinds[(t, n, *rest)] = (True, True)
    shape = tuple(target.shape)
    if shape not in kinds:
        raise ValueError(
            f"target must have the shape [N, *] (class indices) or [N, C, *] (probabilities), here "
            f"{[n, *rest]} or {[n, c, *rest]}, or one of them for each step, {[t, n, *rest]} or "
            f"{[t, n, c, *rest]}, got {list(shape)}"
        )
    per_step, indices = kinds[shape]
    if indices and (target.dtype == torch.bool or floating or target.is_complex()):
        raise TypeError(
            f"target {list(shape)} holds class indices and must be of an integer dtype, "
            f"got {target.dtype}"
        )
    if not indices and not floating:
        raise TypeError(
            f"target {list(shape)} holds probabilities and must be of a floating point dtype, "
            f"got {target.dtype}"
        )
    return per_step, indices


def checked_weight(y_seq: Tensor, weight: Tensor | None) -> Tensor | None:
    """The classes' weights ``[C]``."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor [C] or None, got {type(weight).__name__}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be of a floating point dtype, got {weight.dtype}")
    if weight.shape != y_seq.shape[2:3]:
        raise ValueError(
            f"weight must have one entry per class, [{y_seq.shape[2]}], got {list(weight.shape)}"
        )
    if weight.device != y_seq.device:
        raise ValueError(
            f"weight must be on the device of y_seq, {y_seq.device}, got {weight.device}"
        )
    return weight


def checked_lengths(y_seq: Tensor, lengths: Tensor | Sequence[int] | None) -> Tensor | None:
    """How many steps of each sample count, int64 ``[N]``."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        lengths = _as_tensor("lengths", lengths, y_seq, None)
    if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise TypeError(f"lengths must be of an integer dtype, got {lengths.dtype}")
    if lengths.shape != y_seq.shape[1:2]:
        raise ValueError(
            f"lengths must have one entry per sample, [{y_seq.shape[1]}], got {list(lengths.shape)}"
        )
    if lengths.device != y_seq.device:
        raise ValueError(
            f"lengths must be on the device of y_seq, {y_seq.device}, got {lengths.device}"
        )
    right = (lengths >= 1) & (lengths <= len(y_seq))
    _check_values("lengths", lengths, right, f"numbers of steps from 1 to {len(y_seq)}", 0)
    return lengths.long()


def step_shares(
    y_seq: Tensor, step_weights: Tensor | Sequence[float] | None, inside: Tensor | None
) -> Tensor | None:
    """What each step counts: ``[T]``, with lengths ``[T, N]``, or None where each counts 1 / T.

    Args:
        y_seq: the logits.
        step_weights: one number per step.
        inside: which steps count, ``[T, N]``. The others' shares go to those, in proportion.
    """
    steps = len(y_seq)
    if step_weights is None:
        shares = None
        if inside is not None:
            dtype = torch.promote_types(y_seq.dtype, torch.float32)
            shares = torch.full((steps,), 1 / steps, dtype=dtype, device=y_seq.device)
    else:
        shares = _checked_step_weights(y_seq, step_weights)
    if shares is None or inside is None:
        return shares
    counted = shares[:, None] * inside
    own = counted.sum(0)
    if step_weights is not None:
        allowed = "a weight above 0 in the steps that count of each sample"
        _check_values("step_weights", own.detach(), own > 0, allowed, 0)
    return counted * (shares.sum() / own)


def _checked_step_weights(y_seq: Tensor, step_weights: Tensor | Sequence[float]) -> Tensor:
    dtype = torch.promote_types(y_seq.dtype, torch.float32)
    if not isinstance(step_weights, Tensor):
        step_weights = _as_tensor("step_weights", step_weights, y_seq, dtype)
    if step_weights.dtype == torch.bool or step_weights.is_complex():
        raise TypeError(f"step_weights must be real numbers, got {step_weights.dtype}")
    if step_weights.shape != y_seq.shape[:1]:
        raise ValueError(
            f"step_weights must have one entry per step, [{len(y_seq)}], got "
            f"{list(step_weights.shape)}"
        )
    if step_weights.device != y_seq.device:
        raise ValueError(
            f"step_weights must be on the device of y_seq, {y_seq.device}, got "
            f"{step_weights.device}"
        )
    values = step_weights.detach()
    right = (values >= 0) & values.isfinite() & (values > 0).any()
    _check_values(
        "step_weights", values, right, "finite numbers of 0 or more, with one above 0", None
    )
    return step_weights.to(dtype)


def _as_tensor(name: str, values: Any, y_seq: Tensor, dtype: torch.dtype | None) -> Tensor:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a tensor or a sequence of numbers, got {values!r}")
    for i, value in enumerate(values):
        checks.number(f"{name}[{i}]", value)
    return torch.tensor(list(values), dtype=dtype, device=y_seq.device)


def _check_values(
    name: str,
    values: Tensor,
    right: Tensor,
    allowed: str,
    sample_axis: int | None,
    class_axis: int | None = None,
) -> None:
    """Raise ValueError unless all of ``right`` is true; on a CPU at once.

    ``right`` has the shape of ``values`` without the class axis.
    """
    message = f"{name} must hold {allowed}"
    if torch.compiler.is_compiling() or right.device.type != "cpu":
        right = right if torch.compiler.is_compiling() else _plain(right)
        if right.device.type != "meta":
            torch._assert_async(right.all(), message)
        return
    plain = _plain(right)
    if plain.all():
        return
    if plain is not right:  # the place in a batch of torch.func says nothing about the sample
        raise ValueError(message)
    place = [int(axis) for axis in (~right).nonzero()[0]]
    values = values if class_axis is None else values.movedim(class_axis, -1)
    got = values[tuple(place)]
    if got.dim():
        shown = f"values from {got.min():.4g} to {got.max():.4g} that add up to {got.sum():.4g}"
    else:
        shown = f"{got.item():g}" if got.is_floating_point() else str(int(got))
    if sample_axis is not None:
        shown += f" for sample {place[sample_axis]}"
    if sample_axis == 1:
        shown += f" at step {place[0]}"
    raise ValueError(f"{message}, got {shown}")


def _plain(tensor: Tensor) -> Tensor:
    """The tensor under the wrappers of ``torch.func``, whose values Python may look at.

    With ``vmap`` it holds the entries of the whole batch. PyTorch has no public way to ask.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor
