"""The losses of :mod:`sj_ext.functional.loss` as modules, each with its way to predict."""

from __future__ import annotations

from torch import Tensor, nn

from .functional.loss import (
    check_label_smoothing,
    check_tet,
    check_y_seq,
    lts_cross_entropy,
    sdt_cross_entropy,
    tet_cross_entropy,
    tet_s_cross_entropy,
)

__all__ = ["LTSLoss", "SDTLoss", "TETLoss", "TETSLoss"]


class SDTLoss(nn.Module):
    """Cross-entropy of the mean output: :func:`~sj_ext.functional.sdt_cross_entropy`.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``; the loss is a scalar, what
        :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: when called, as the function.
    """

    def forward(self, y_seq: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return sdt_cross_entropy(y_seq, target)

    def predict(self, y_seq: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` that the loss trains for prediction: the mean over t."""
        return _mean_output(y_seq)


class TETLoss(nn.Module):
    """Mean of the steps' cross-entropies: :func:`~sj_ext.functional.tet_cross_entropy`.

    Args:
        means: What the mean-square term pulls every logit to.
        lamb: Weight of the mean-square term, 0 to 1.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``; the loss is a scalar, what
        :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: ``means`` is not a finite number, or ``lamb`` is outside [0, 1].
    """

    def __init__(self, *, means: float = 1.0, lamb: float = 0.0) -> None:
        super().__init__()
        check_tet(means, lamb)
        self.means = means
        self.lamb = lamb

    def forward(self, y_seq: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return tet_cross_entropy(y_seq, target, means=self.means, lamb=self.lamb)

    def predict(self, y_seq: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` that the loss trains for prediction: the mean over t."""
        return _mean_output(y_seq)

    def extra_repr(self) -> str:
        return f"means={self.means}, lamb={self.lamb}"


class TETSLoss(nn.Module):
    """TET with label smoothing: :func:`~sj_ext.functional.tet_s_cross_entropy`.

    Args:
        label_smoothing: From 0 to 1.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``; the loss is a scalar, what
        :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: ``label_smoothing`` is not a number in [0, 1].
    """

    def __init__(self, *, label_smoothing: float = 0.01) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, y_seq: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return tet_s_cross_entropy(y_seq, target, label_smoothing=self.label_smoothing)

    def predict(self, y_seq: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` that the loss trains for prediction: the mean over t."""
        return _mean_output(y_seq)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}"


class LTSLoss(nn.Module):
    """Cross-entropy of the last step's output: :func:`~sj_ext.functional.lts_cross_entropy`.

    Shapes:
        ``y_seq`` ``[T, N, C]``, ``target`` ``[N]`` or ``[N, C]``; the loss is a scalar, what
        :meth:`predict` returns is ``[N, C]``.

    Raises:
        TypeError, ValueError: when called, as the function.
    """

    def forward(self, y_seq: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``[T, N, C]``; ``target`` is ``[N]`` or ``[N, C]``."""
        return lts_cross_entropy(y_seq, target)

    def predict(self, y_seq: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` that the loss trains for prediction: the last step's."""
        check_y_seq(y_seq)
        return y_seq[-1]


def _mean_output(y_seq: Tensor) -> Tensor:
    check_y_seq(y_seq)
    return y_seq.mean(0)
