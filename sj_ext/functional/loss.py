r"""Losses over the time steps of a classifier's output.

With :math:`y_t` the logits of step :math:`t = 0 \ldots T-1` and :math:`q` the target distribution,
:math:`\mathrm{CE}(y, q) = -\sum_c q_c \log \mathrm{softmax}(y)_c`:

=====  =============================================================================  =============
name   loss (mean over the batch)                                                     prediction
=====  =============================================================================  =============
SDT    :math:`\mathrm{CE}(\frac1T \sum_t y_t, q)`                                     mean over t
TET    :math:`(1-\lambda) \frac1T \sum_t \mathrm{CE}(y_t, q) + \lambda\,
       \mathrm{MSE}(y, \mathrm{means})`                                               mean over t
TET-S  :math:`\frac1T \sum_t \mathrm{CE}(y_t, (1-\epsilon) q + \epsilon / C)`         mean over t
LTS    :math:`\mathrm{CE}(y_{T-1}, q)`                                                last step
=====  =============================================================================  =============

Sources: SDT (standard direct training) and TET, Deng et al., "Temporal Efficient Training of
Spiking Neural Network via Gradient Re-weighting", ICLR 2022; TET-S (TET with label smoothing) and
LTS (label at the last time step), Shen et al., "Rethinking the Membrane Dynamics and Optimization
Objectives of Spiking Neural Networks", NeurIPS 2024.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "lts_cross_entropy",
    "sdt_cross_entropy",
    "tet_cross_entropy",
    "tet_s_cross_entropy",
]


def sdt_cross_entropy(y_seq: Tensor, target: Tensor) -> Tensor:
    r"""Standard direct training: cross-entropy of the mean output.

    .. math:: L = \mathrm{CE}\Big(\frac1T \sum_t y_t,\ q\Big)

    Args:
        y_seq: Logits ``[T, N, C]``, floating point.
        target: Class indices ``[N]`` (an integer dtype, 0 to C-1), or probabilities ``[N, C]``
            (a floating dtype, each row a distribution), as mixup and cutmix make them.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        TypeError: ``y_seq`` or ``target`` is not a tensor or of the wrong dtype.
        ValueError: A shape, a device or a value of ``target`` is wrong. Values are checked at once
            on a CPU; elsewhere, and under ``torch.compile``, the device asserts them without the
            host waiting for it, and PyTorch reports a RuntimeError when they are wrong.

    Source: Deng et al., ICLR 2022.
    """
    target = _checked_target(y_seq, target)
    return F.cross_entropy(y_seq.mean(0), target)


def tet_cross_entropy(
    y_seq: Tensor, target: Tensor, *, means: float = 1.0, lamb: float = 0.0
) -> Tensor:
    r"""Temporal efficient training: the mean of the steps' cross-entropies.

    .. math::
        L = (1 - \lambda) \frac1T \sum_t \mathrm{CE}(y_t, q)
            + \lambda\, \frac1{T N C} \sum_{t, n, c} (y_{t,n,c} - \mathrm{means})^2

    Args:
        y_seq: Logits ``[T, N, C]``.
        target: Class indices ``[N]`` or probabilities ``[N, C]``, as for
            :func:`sdt_cross_entropy`. They are never repeated T times.
        means: What the second term pulls every logit to (the neurons' threshold in the paper).
        lamb: Weight of the second term, 0 to 1. At 0 it is not computed.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        TypeError, ValueError: As :func:`sdt_cross_entropy`; or ``lamb`` is outside [0, 1], or
            ``means`` is not finite.

    Source: Deng et al., ICLR 2022.
    """
    target = _checked_target(y_seq, target)
    check_tet(means, lamb)
    if lamb == 0:
        return _mean_step_cross_entropy(y_seq, target, 0.0)
    # First, so that backward comes to it last, when the log-probabilities are gone.
    distance = _MeanSquareDistance.apply(y_seq, means)
    loss = _mean_step_cross_entropy(y_seq, target, 0.0)
    return (1 - lamb) * loss + lamb * distance.to(loss.dtype)


def tet_s_cross_entropy(y_seq: Tensor, target: Tensor, *, label_smoothing: float = 0.01) -> Tensor:
    r"""TET with label smoothing in place of the mean-square term.

    .. math:: L = \frac1T \sum_t \mathrm{CE}\Big(y_t,\ (1 - \epsilon) q + \frac{\epsilon}{C}\Big)

    Args:
        y_seq: Logits ``[T, N, C]``.
        target: Class indices ``[N]`` or probabilities ``[N, C]``, as for
            :func:`sdt_cross_entropy`. They are never repeated T times.
        label_smoothing: :math:`\epsilon`, 0 to 1. The default is what the paper uses for
            CIFAR10-DVS.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        TypeError, ValueError: As :func:`sdt_cross_entropy`; or ``label_smoothing`` is outside
            [0, 1].

    Source: Shen et al., NeurIPS 2024.
    """
    target = _checked_target(y_seq, target)
    check_label_smoothing(label_smoothing)
    return _mean_step_cross_entropy(y_seq, target, label_smoothing)


def lts_cross_entropy(y_seq: Tensor, target: Tensor) -> Tensor:
    r"""Label at the last time step: only the last output learns, the others are left free.

    .. math:: L = \mathrm{CE}(y_{T-1},\ q)

    The prediction is then the last step's, too. Meant for static input, whose later steps see no
    more than the first.

    Args:
        y_seq: Logits ``[T, N, C]``.
        target: Class indices ``[N]`` or probabilities ``[N, C]``, as for
            :func:`sdt_cross_entropy`.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        TypeError, ValueError: As :func:`sdt_cross_entropy`.

    Source: Shen et al., NeurIPS 2024.
    """
    target = _checked_target(y_seq, target)
    return F.cross_entropy(y_seq[-1], target)


def check_tet(means: float, lamb: float) -> None:
    """Raise TypeError or ValueError unless these are arguments of :func:`tet_cross_entropy`."""
    _check_number("means", means)
    if not math.isfinite(means):
        raise ValueError(f"means must be finite, got {means}")
    _check_number("lamb", lamb)
    if not 0 <= lamb <= 1:
        raise ValueError(f"lamb must be between 0 and 1, got {lamb}")


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise TypeError or ValueError unless this is a ``label_smoothing``."""
    _check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")


def check_y_seq(y_seq: Tensor) -> None:
    """Raise TypeError or ValueError unless ``y_seq`` holds logits ``[T, N, C]``."""
    if not isinstance(y_seq, Tensor):
        raise TypeError(f"y_seq must be a tensor [T, N, C], got {type(y_seq).__name__}")
    if y_seq.dim() != 3:
        hint = " (a time axis is missing)" if y_seq.dim() == 2 else ""
        raise ValueError(f"y_seq must have the shape [T, N, C], got {list(y_seq.shape)}{hint}")
    if y_seq.numel() == 0:
        raise ValueError(
            f"y_seq [T, N, C] needs a step, a sample and a class at least, got {list(y_seq.shape)}"
        )
    if not y_seq.is_floating_point():
        raise TypeError(f"y_seq must be of a floating point dtype, got {y_seq.dtype}")


def _mean_step_cross_entropy(y_seq: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    # Cross-entropy is linear in the log-probabilities, so the mean over time can be taken before
    # the target comes in: the target stays [N] or [N, C].
    log_p = F.log_softmax(y_seq, -1).mean(0)
    if target.dim() == 1:
        loss = F.nll_loss(log_p, target)
    else:
        loss = -(target.to(log_p.dtype) * log_p).sum(-1).mean()
    if label_smoothing == 0:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * log_p.mean()


class _MeanSquareDistance(torch.autograd.Function):
    """``mse_loss(y, means)`` without buffers of y's size in forward and with one in backward.

    PyTorch's own takes two in forward, which would double what the loss allocates.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, means: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.means = means
        at_least_float = torch.promote_types(y.dtype, torch.float32)
        # variance + squared bias: both are positive, so that nothing cancels
        variance, mean = torch.var_mean(y.to(at_least_float), correction=0)
        return variance + (mean - means) ** 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return (y - ctx.means).mul_(grad * (2 / y.numel())), None


def _checked_target(y_seq: Tensor, target: Tensor) -> Tensor:
    check_y_seq(y_seq)
    _, n, c = y_seq.shape
    if not isinstance(target, Tensor):
        raise TypeError(
            f"target must be a tensor of class indices [N] or probabilities [N, C], "
            f"got {type(target).__name__}"
        )
    if target.shape not in ((n,), (n, c)):
        raise ValueError(
            f"target must have the shape [N] (class indices) or [N, C] (probabilities), here "
            f"[{n}] or [{n}, {c}], got {list(target.shape)}"
        )
    if target.device != y_seq.device:
        raise ValueError(
            f"target must be on the device of y_seq, {y_seq.device}, got {target.device}"
        )
    if target.dim() == 1:
        if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
            raise TypeError(
                f"target [N] holds class indices and must be of an integer dtype, "
                f"got {target.dtype}"
            )
        _check_values(
            target,
            (target >= 0) & (target < c),
            f"class indices from 0 to {c - 1}",
        )
        return target.long()
    if not target.is_floating_point():
        raise TypeError(
            f"target [N, C] holds probabilities and must be of a floating point dtype, "
            f"got {target.dtype}"
        )
    values = target.detach()
    # wide enough for rows that were rounded to bfloat16
    one = (values.sum(-1, dtype=torch.float32) - 1).abs() <= 1e-2
    _check_values(
        values,
        (values >= 0).all(-1) & one,
        "probabilities from 0 to 1 that add up to 1 for each sample",
    )
    return target


def _check_values(target: Tensor, right: Tensor, allowed: str) -> None:
    """Raise ValueError unless all of ``right`` [N] is true; on a CPU at once."""
    message = f"target must hold {allowed}"
    if torch.compiler.is_compiling() or right.device.type != "cpu":
        if right.device.type != "meta":
            torch._assert_async(right.all(), message)
        return
    if not right.all():
        sample = int((~right).nonzero()[0])
        got = target[sample]
        if got.dim():
            shown = f"values from {got.min():.4g} to {got.max():.4g} that add up to {got.sum():.4g}"
        else:
            shown = str(int(got))
        raise ValueError(f"{message}, got {shown} for sample {sample}")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
