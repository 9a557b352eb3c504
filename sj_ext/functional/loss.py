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

All of them take logits ``[T, N, C]``, or ``[T, N, C, *]`` with a target for each place, and read
them once. With the options of PyTorch's ``cross_entropy`` (class weights :math:`w_c`,
``ignore_index``, ``reduction``), with shares :math:`\omega_t` of the steps in place of
:math:`1/T`, with a length for each sample and with a target for each step, TET is

.. math::
    \ell_n = \sum_t \omega_{t,n}\, \mathrm{CE}_w(y_{t,n}, q_{t,n}), \qquad
    L = \frac{\sum_n \ell_n}{\sum_{t,n} \omega_{t,n} w_{q_{t,n}} / \Omega}, \qquad
    \Omega = \sum_t \omega_t,

and the divisor is N without weights, as it is for probabilities; in SDT the shares weigh the
outputs, and LTS has no other step than a sample's last. The steps beyond a sample's length
give their shares to those before, in proportion, so that a short sample counts as a long one.

Sources: SDT (standard direct training) and TET, Deng et al., "Temporal Efficient Training of
Spiking Neural Network via Gradient Re-weighting", ICLR 2022; TET-S (TET with label smoothing) and
LTS (label at the last time step), Shen et al., "Rethinking the Membrane Dynamics and Optimization
Objectives of Spiking Neural Networks", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_inputs import (
    Target,
    check_label_smoothing,
    check_options,
    check_tet,
    check_y_seq,
    checked_lengths,
    checked_target,
    checked_weight,
    step_shares,
)

__all__ = [
    "lts_cross_entropy",
    "sdt_cross_entropy",
    "tet_cross_entropy",
    "tet_s_cross_entropy",
]


def sdt_cross_entropy(
    y_seq: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    step_weights: Tensor | Sequence[float] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Standard direct training: cross-entropy of the mean output.

    .. math:: L = \mathrm{CE}\Big(\frac1T \sum_t y_t,\ q\Big)

    Args:
        y_seq: Logits ``[T, N, C]``, floating point; ``[T, N, C, *]`` (segmentation: ``[T, N, C, H,
            W]``) with a target at each place.
        target: Class indices ``[N]`` (an integer dtype, 0 to C-1), or probabilities ``[N, C]``
            (a floating dtype, each row a distribution), as mixup and cutmix make them; ``[N, *]``
            and ``[N, C, *]`` for dense logits.
        weight: Weights of the classes, ``[C]``, as PyTorch's ``cross_entropy`` has them.
        ignore_index: A class index that does not count, such as -100; by default every index must
            be a class.
        reduction: ``'mean'`` over the samples, weighted as PyTorch does it (nan if all are
            ignored); ``'sum'``; or ``'none'`` for one value per sample (and place).
        step_weights: :math:`\omega_t` in place of :math:`1/T`, ``[T]``, 0 or more; taken as they
            are.
        lengths: How many steps of each sample count, ``[N]``, 1 to T. What ``y_seq`` holds beyond
            does not matter, and gets no gradient.

    Returns:
        A scalar, or with ``reduction='none'`` ``[N]`` (dense: ``[N, *]``).

    Raises:
        TypeError: ``y_seq`` or ``target`` is not a tensor or of the wrong dtype, or an option is of
            the wrong kind.
        ValueError: A shape, a device or a value of ``target`` or of an option is wrong. Values are
            checked at once on a CPU; elsewhere, and under ``torch.compile``, the device asserts
            them without the host waiting for it, and PyTorch reports a RuntimeError when they are
            wrong.

    Source: Deng et al., ICLR 2022.
    """
    checked = checked_target(y_seq, target, ignore_index)
    if checked.per_step:
        raise ValueError(
            f"target must not have a time axis: the mean over time has one target per sample, got "
            f"{list(target.shape)}; tet_cross_entropy takes one for each step"
        )
    check_options(ignore_index, reduction)
    weight = checked_weight(y_seq, weight)
    log_p = F.log_softmax(mean_output(y_seq, step_weights, lengths), 1)
    return _reduced(*_entries(log_p, checked, weight, 0.0), reduction)


def tet_cross_entropy(
    y_seq: Tensor,
    target: Tensor,
    *,
    means: float = 1.0,
    lamb: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    step_weights: Tensor | Sequence[float] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Temporal efficient training: the mean of the steps' cross-entropies.

    .. math::
        L = (1 - \lambda) \frac1T \sum_t \mathrm{CE}(y_t, q)
            + \lambda\, \frac1{T N C} \sum_{t, n, c} (y_{t,n,c} - \mathrm{means})^2

    Args:
        y_seq: Logits ``[T, N, C]`` or ``[T, N, C, *]``.
        target: Class indices ``[N]`` or probabilities ``[N, C]``, as for
            :func:`sdt_cross_entropy`, which are never repeated T times; or one for each step,
            ``[T, N]`` or ``[T, N, C]``.
        means: What the second term pulls every logit to (the neurons' threshold in the paper).
        lamb: Weight of the second term, 0 to 1. At 0 it is not computed. Class and step weights do
            not enter it; what is ignored or beyond a sample's length is left out of it.
        weight, ignore_index, reduction, lengths: As for :func:`sdt_cross_entropy`.
        step_weights: The steps' weights in place of :math:`1/T`, ``[T]``, 0 or more; taken as they
            are. T-RevSNN's own training has :math:`(t+1)/T`.

    Returns:
        A scalar, or with ``reduction='none'`` ``[N]`` (dense: ``[N, *]``).

    Raises:
        TypeError, ValueError: As :func:`sdt_cross_entropy`; or ``lamb`` is outside [0, 1], or
            ``means`` is not finite.

    Source: Deng et al., ICLR 2022.
    """
    checked = checked_target(y_seq, target, ignore_index)
    check_tet(means, lamb)
    check_options(ignore_index, reduction)
    weight = checked_weight(y_seq, weight)
    y_seq, shares, own = _steps_that_count(y_seq, step_weights, checked_lengths(y_seq, lengths))
    if lamb == 0:
        return _step_cross_entropy(y_seq, checked, weight, shares, reduction, 0.0)
    # First, so that backward comes to it last, when the log-probabilities are gone.
    distance = _square_distance(y_seq, means, checked.kept(), checked.per_step, own, reduction)
    loss = _step_cross_entropy(y_seq, checked, weight, shares, reduction, 0.0)
    return (1 - lamb) * loss + lamb * distance.to(loss.dtype)


def tet_s_cross_entropy(
    y_seq: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.01,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    step_weights: Tensor | Sequence[float] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""TET with label smoothing in place of the mean-square term.

    .. math:: L = \frac1T \sum_t \mathrm{CE}\Big(y_t,\ (1 - \epsilon) q + \frac{\epsilon}{C}\Big)

    Args:
        y_seq: Logits ``[T, N, C]`` or ``[T, N, C, *]``.
        target: Class indices or probabilities, as for :func:`tet_cross_entropy`.
        label_smoothing: :math:`\epsilon`, 0 to 1. The default is what the paper uses for
            CIFAR10-DVS.
        weight, ignore_index, reduction, lengths: As for :func:`sdt_cross_entropy`.
        step_weights: As for :func:`tet_cross_entropy`.

    Returns:
        A scalar, or with ``reduction='none'`` ``[N]`` (dense: ``[N, *]``).

    Raises:
        TypeError, ValueError: As :func:`sdt_cross_entropy`; or ``label_smoothing`` is outside
            [0, 1].

    Source: Shen et al., NeurIPS 2024.
    """
    checked = checked_target(y_seq, target, ignore_index)
    check_label_smoothing(label_smoothing)
    check_options(ignore_index, reduction)
    weight = checked_weight(y_seq, weight)
    y_seq, shares = _steps_that_count(y_seq, step_weights, checked_lengths(y_seq, lengths))[:2]
    return _step_cross_entropy(y_seq, checked, weight, shares, reduction, label_smoothing)


def lts_cross_entropy(
    y_seq: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    lengths: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Label at the last time step: only the last output learns, the others are left free.

    .. math:: L = \mathrm{CE}(y_{T-1},\ q)

    The prediction is then the last step's, too. Meant for static input, whose later steps see no
    more than the first.

    Args:
        y_seq: Logits ``[T, N, C]`` or ``[T, N, C, *]``.
        target: Class indices or probabilities, as for :func:`tet_cross_entropy`; of one for each
            step the last one counts.
        weight, ignore_index, reduction: As for :func:`sdt_cross_entropy`.
        lengths: How many steps each sample has, ``[N]``, 1 to T: the last of these is the one that
            learns.

    Returns:
        A scalar, or with ``reduction='none'`` ``[N]`` (dense: ``[N, *]``).

    Raises:
        TypeError, ValueError: As :func:`sdt_cross_entropy`.

    Source: Shen et al., NeurIPS 2024.
    """
    checked = checked_target(y_seq, target, ignore_index)
    check_options(ignore_index, reduction)
    weight = checked_weight(y_seq, weight)
    last = last_step(y_seq, checked_lengths(y_seq, lengths))
    log_p = F.log_softmax(y_seq[last], 1)
    return _reduced(*_entries(log_p, checked.at(last), weight, 0.0), reduction)


def mean_output(
    y_seq: Tensor,
    step_weights: Tensor | Sequence[float] | None,
    lengths: Tensor | Sequence[int] | None,
) -> Tensor:
    """The (weighted) mean over time ``[N, C, *]`` of logits ``[T, N, C, *]``."""
    check_y_seq(y_seq)
    y_seq, shares = _steps_that_count(y_seq, step_weights, checked_lengths(y_seq, lengths))[:2]
    return _over_time(y_seq, shares)


def last_step(y_seq: Tensor, lengths: Tensor | None) -> Any:
    """The index of each sample's last step."""
    if lengths is None:
        return -1
    return lengths - 1, torch.arange(y_seq.shape[1], device=y_seq.device)


def _steps_that_count(
    y_seq: Tensor, step_weights: Tensor | Sequence[float] | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits without what lies beyond the lengths, the steps' shares, and the even shares."""
    if lengths is None:
        return y_seq, step_shares(y_seq, step_weights, None), None
    inside = torch.arange(len(y_seq), device=y_seq.device)[:, None] < lengths
    shares = step_shares(y_seq, step_weights, inside)
    even = shares if step_weights is None else step_shares(y_seq, None, inside)
    # Not by a share of 0 alone: padding may hold nan, and 0 times nan is nan.
    outside = ~inside.reshape(*inside.shape, *[1] * (y_seq.dim() - 2))
    return y_seq.masked_fill(outside, 0), shares, even


def _over_time(x: Tensor, shares: Tensor | None) -> Tensor:
    """The sum of the steps of ``x`` ``[T, N, *]``, each times its share."""
    if shares is None:
        return x.mean(0)
    if torch.is_autocast_enabled(x.device.type):  # products of matrices would be of 16 bits
        with torch.autocast(x.device.type, enabled=False):
            return _over_time(x, shares)
    shares = shares.to(x.dtype)
    if shares.dim() == 1:
        return torch.tensordot(shares, x, 1)
    return torch.einsum("tn,tn...->n...", shares, x)


def _step_cross_entropy(
    y_seq: Tensor,
    target: Target,
    weight: Tensor | None,
    shares: Tensor | None,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    # Cross-entropy is linear in the log-probabilities, so the sum over time can be taken before
    # the target comes in: the target stays [N] or [N, C].
    log_p = F.log_softmax(y_seq, 2)
    if not target.per_step:
        entries, weights = _entries(_over_time(log_p, shares), target, weight, label_smoothing)
        return _reduced(entries, weights, reduction)
    entries, weights = _entries(log_p.flatten(0, 1), target.flat(), weight, label_smoothing)
    sizes = log_p.shape[:2]
    if weights is not None:
        # for the divisor shares of a sample's steps add up to 1
        parts = None if shares is None else shares / shares.sum(0)
        weights = _over_time(weights.unflatten(0, sizes), parts)
    return _reduced(_over_time(entries.unflatten(0, sizes), shares), weights, reduction)


def _entries(
    log_p: Tensor, target: Target, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor | None]:
    """The loss of each sample and place, and what it counts in the mean (None: 1).

    Args:
        log_p: log-probabilities ``[N, C, *]``.
        target: without a time axis.
        weight: of the classes, ``[C]``.
        label_smoothing: from 0 to 1.
    """
    weight = None if weight is None else weight.to(log_p.dtype)
    if target.is_indices:
        kept = target.kept()
        ignored = -100 if target.ignore_index is None else target.ignore_index
        entries = F.nll_loss(log_p, target.value, weight, ignore_index=ignored, reduction="none")
        weights = None if kept is None else kept.to(log_p.dtype)
        if weight is not None:
            index = target.value if kept is None else target.value.where(kept, 0)
            weights = weight[index] if weights is None else weight[index] * weights
    else:
        kept = weights = None
        entries = -_over_classes(target.value.to(log_p.dtype) * log_p, weight)
    if label_smoothing:
        even = _over_classes(log_p, weight) / log_p.shape[1]
        even = even if kept is None else even.where(kept, 0)
        entries = (1 - label_smoothing) * entries - label_smoothing * even
    return entries, weights


def _over_classes(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * weight.view(-1, *[1] * (x.dim() - 2))
    return x.sum(1)


def _reduced(entries: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    if reduction == "none":
        return entries
    if reduction == "sum":
        return entries.sum()
    if weights is None:
        return entries.mean()
    wide = torch.promote_types(entries.dtype, torch.float32)  # sums of many may not fit 16 bits
    return (entries.sum(dtype=wide) / weights.sum(dtype=wide)).to(entries.dtype)


def _square_distance(
    y_seq: Tensor,
    means: float,
    kept: Tensor | None,
    per_step: bool,
    shares: Tensor | None,
    reduction: str,
) -> Tensor:
    """Mean square distance of the logits that count from ``means``."""
    entries = _SquareDistance.apply(y_seq, means)
    if kept is None:
        return _reduced(_over_time(entries, shares), None, reduction)
    entries = entries.where(kept, 0)
    counted = kept.to(entries.dtype)
    if per_step:
        counted = _over_time(counted, shares)
    return _reduced(_over_time(entries, shares), counted, reduction)


class _SquareDistance(torch.autograd.Function):
    """Mean over the classes of ``(y - means)^2``, in float32 at least.

    Without buffers of y's size in forward and with one in backward: PyTorch's ``mse_loss`` takes
    two in forward, which would double what the loss allocates.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, means: float) -> Tensor:
        at_least_float = torch.promote_types(y.dtype, torch.float32)
        # variance + squared bias: both are positive, so that nothing cancels
        variance, mean = torch.var_mean(y.to(at_least_float), dim=2, correction=0)
        return variance + (mean - means) ** 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, ctx.means = inputs
        ctx.save_for_backward(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        grad = (grad * (2 / y.shape[2])).to(y.dtype).unsqueeze(2)
        return torch.addcmul(grad * -ctx.means, grad, y), None
