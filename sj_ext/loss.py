"""The losses of :mod:`sj_ext.functional.loss` as modules, each with its way to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .functional.loss import (
    last_step,
    lts_cross_entropy,
    mean_output,
    sdt_cross_entropy,
    tet_cross_entropy,
    tet_s_cross_entropy,
)
from .functional.loss_inputs import (
    check_label_smoothing,
    check_options,
    check_tet,
    check_y_seq,
    checked_lengths,
)

__all__ = ["LTSLoss", "SDTLoss", "TETLoss", "TETSLoss"]


class _OverTime(nn.Module):
    """What the losses have in common: the options of PyTorch's losses, weights as buffers."""

    weight: Tensor | None
    step_weights: Tensor | None

    def __init__(
        self,
        weight: Tensor | None,
        ignore_index: int | None,
        reduction: str,
        step_weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_options(ignore_index, reduction)
        self.register_buffer("weight", _vector("weight", weight))
        self.register_buffer("step_weights", _vector("step_weights", step_weights))
        self.ignore_index = ignore_index
        self.reduction = reduction

    def predict(self, y_seq: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the logits ``[N, C]`` that the loss trains for prediction: the mean over t."""
        return mean_output(y_seq, None, lengths)

    def _options(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
        }

    def extra_repr(self) -> str:
        own = {name: getattr(self, name) for name in self._own}
        if self.ignore_index is not None:
            own["ignore_index"] = self.ignore_index
        if self.reduction != "mean":
            own["reduction"] = self.reduction
        return ", ".join(f"{name}={value!r}" for name, value in own.items())

    #: names of the arguments that only this loss has
    _own: tuple[str, ...] = ()


class SDTLoss(_OverTime):
    """Cross-entropy of the mean output: :func:`~sj_ext.functional.sdt_cross_entropy`.

    Args:
        weight, ignore_index, reduction, step_weights: as the function's. Both weights are buffers,
            which move with the module.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``; the loss is a scalar, what
        :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: when made, for an option of the wrong kind; when called, as the
            function.
    """

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        step_weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, step_weights)

    def forward(
        self, y_seq: Tensor, target: Tensor, *, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return sdt_cross_entropy(
            y_seq, target, step_weights=self.step_weights, lengths=lengths, **self._options()
        )

    def predict(self, y_seq: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the logits ``[N, C]`` that the loss looks at: the (weighted) mean over t."""
        return mean_output(y_seq, self.step_weights, lengths)


class TETLoss(_OverTime):
    """Mean of the steps' cross-entropies: :func:`~sj_ext.functional.tet_cross_entropy`.

    Args:
        means: What the mean-square term pulls every logit to.
        lamb: Weight of the mean-square term, 0 to 1.
        weight, ignore_index, reduction, step_weights: as the function's. Both weights are buffers,
            which move with the module.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``, or one for each step, ``[T, N]``
        or ``[T, N, C]``; the loss is a scalar, what :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: ``means`` is not a finite number, ``lamb`` is outside [0, 1], or an
            option is of the wrong kind.
    """

    _own = ("means", "lamb")

    def __init__(
        self,
        *,
        means: float = 1.0,
        lamb: float = 0.0,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        step_weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, step_weights)
        check_tet(means, lamb)
        self.means = means
        self.lamb = lamb

    def forward(
        self, y_seq: Tensor, target: Tensor, *, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return tet_cross_entropy(
            y_seq,
            target,
            means=self.means,
            lamb=self.lamb,
            step_weights=self.step_weights,
            lengths=lengths,
            **self._options(),
        )


class TETSLoss(_OverTime):
    """TET with label smoothing: :func:`~sj_ext.functional.tet_s_cross_entropy`.

    Args:
        label_smoothing: From 0 to 1.
        weight, ignore_index, reduction, step_weights: as the function's. Both weights are buffers,
            which move with the module.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``, or one for each step, ``[T, N]``
        or ``[T, N, C]``; the loss is a scalar, what :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: ``label_smoothing`` is not a number in [0, 1], or an option is of the
            wrong kind.
    """

    _own = ("label_smoothing",)

    def __init__(
        self,
        *,
        label_smoothing: float = 0.01,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        step_weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, step_weights)
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(
        self, y_seq: Tensor, target: Tensor, *, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return tet_s_cross_entropy(
            y_seq,
            target,
            label_smoothing=self.label_smoothing,
            step_weights=self.step_weights,
            lengths=lengths,
            **self._options(),
        )


class LTSLoss(_OverTime):
    """Cross-entropy of the last step's output: :func:`~sj_ext.functional.lts_cross_entropy`.

    Args:
        weight, ignore_index, reduction: as the function's. The weight is a buffer, which moves with
            the module.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``; the loss is a scalar, what
        :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: when made, for an option of the wrong kind; when called, as the
            function.
    """

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, ignore_index, reduction)

    def forward(
        self, y_seq: Tensor, target: Tensor, *, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return lts_cross_entropy(y_seq, target, lengths=lengths, **self._options())

    def predict(self, y_seq: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the logits ``[N, C]`` that the loss trains for prediction: the last step's."""
        check_y_seq(y_seq)
        return y_seq[last_step(y_seq, checked_lengths(y_seq, lengths))]


def _vector(name: str, value: Tensor | Sequence[float] | None) -> Tensor | None:
    """A buffer's value; its size is known when the logits are."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a tensor or a sequence, got {value!r}")
    return torch.tensor(checks.numbers(name, value), dtype=torch.float32)
