"""Accuracy at each time step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .. import checks, host
from ..arguments import checked
from ..functional.loss_inputs import check_y_seq
from ..observe import at_rest
from .axes import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: wrappers that hold a model in ``module``, and in evaluation do no more than call it
_WRAPPERS: tuple[Any, ...] = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    AveragedModel,
)


@overload
def per_step_accuracy(y_seq: Tensor, target: Tensor, /, *, cumulative: bool = False) -> Tensor: ...


@overload
def per_step_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    /,
    *,
    cumulative: bool = False,
    num_steps: int | None = None,
) -> Tensor: ...


@checked
def per_step_accuracy(
    outputs: Any, targets: Any, /, *, cumulative: bool = False, num_steps: int | None = None
) -> Tensor:
    r"""Share of right predictions at each time step, of given outputs or of a model.

    The prediction of step t is the class with the largest :math:`y_t`, or with ``cumulative`` the
    one with the largest :math:`\frac{1}{t+1} \sum_{s \le t} y_s`, which is what a network that
    averages its outputs (SDT, TET) answers when it is stopped after step t.

    Two forms::

        per_step_accuracy(y_seq, target)
        per_step_accuracy(model, batches, num_steps=4)

    The second puts every batch through the model in evaluation mode without gradients and from
    reset, and leaves every module's state and train or eval flag as they were. A model that answers
    with the last step alone in evaluation and has a method ``step_logits``, as
    :class:`~sj_ext.model.TRevSNN` does, is asked through that method. Batches go to the device of
    the model's parameters. Wrap ``batches`` in ``tqdm`` for a bar.

    Args:
        outputs: Outputs ``[T, N, C]`` (dense: ``[T, N, C, *]``), or a multi-step model that returns
            them.
        targets: Class indices ``[N]`` (dense: ``[N, *]``); with a model an iterable of
            ``(x, target)``, such as a ``DataLoader``.
        cumulative: Predict from the mean of the outputs so far.
        num_steps: With a model: repeat each ``x`` ``[N, *]`` over this many steps (without a copy)
            to ``[T, N, *]``. By default the model gets ``x`` as it comes.

    Returns:
        float64 ``[T]`` on the CPU, each from 0 to 1.

    Raises:
        TypeError: The first argument is neither a tensor nor a module, ``num_steps`` is given
            without a model, or a tensor is of the wrong dtype.
        ValueError: Outputs have no time axis, targets are not ``[N]``, ``num_steps`` is below 1,
            T differs between batches, or there is no batch.
    """
    if isinstance(outputs, Tensor):
        if num_steps is not None:
            raise TypeError("num_steps goes with a model; y_seq has its time steps already")
        right, count = _right(outputs, targets, cumulative), targets.numel()
    elif isinstance(outputs, nn.Module):
        right, count = _run(outputs, targets, cumulative, num_steps)
    else:
        raise TypeError(
            f"the first argument must be outputs [T, N, C] or a model, got {type(outputs).__name__}"
        )
    return right.cpu().double() / count


@checked
def plot_per_step_accuracy(
    accuracies: Mapping[str, Tensor] | Tensor, ax: Axes | None = None
) -> Axes:
    """Draw accuracy (in percent) over the time steps.

    Args:
        accuracies: One result of :func:`per_step_accuracy`, ``[T]``, or several by name.
        ax: Where to draw; by default the axes of a new figure (``ax.figure``).

    Raises:
        ValueError: ``accuracies`` is empty.
        RuntimeError: matplotlib is not installed and ``ax`` is not given.
    """
    named = accuracies if isinstance(accuracies, Mapping) else {"": accuracies}
    if not named:
        raise ValueError("accuracies is empty: there is nothing to plot")
    ax = axes_or_new(ax)
    for name, accuracy in named.items():
        percent = (100 * accuracy).tolist()
        ax.plot(range(1, len(percent) + 1), percent, marker="o", label=name)
    ax.set_xticks(range(1, max(len(accuracy) for accuracy in named.values()) + 1))
    ax.set_xlabel("time step")
    ax.set_ylabel("accuracy (%)")
    if isinstance(accuracies, Mapping):
        ax.legend()
    return ax


def _right(y_seq: Tensor, target: Tensor, cumulative: bool) -> Tensor:
    """How many predictions are right at each step: int64 [T], on the device of y_seq."""
    check_y_seq(y_seq)
    if not isinstance(target, Tensor):
        raise TypeError(f"targets must be a tensor of class indices, got {type(target).__name__}")
    shape = [y_seq.shape[1], *y_seq.shape[3:]]
    if list(target.shape) != shape:
        raise ValueError(
            f"targets must hold class indices of the shape [N], here {shape}, got "
            f"{list(target.shape)}"
        )
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise TypeError(f"targets must be of an integer dtype, got {target.dtype}")
    if cumulative:
        y_seq = y_seq.cumsum(0)  # the same largest class as the mean
    return (y_seq.argmax(2) == target).flatten(1).sum(1)


def _run(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    cumulative: bool,
    num_steps: int | None,
) -> tuple[Tensor, int]:
    if num_steps is not None:
        checks.integer("num_steps", num_steps, at_least=1)
    all_steps = _all_steps(model)
    parameter = next(model.parameters(), None)
    right: Tensor | None = None
    count = 0
    with at_rest(model):
        for x, target in batches:
            if parameter is not None:
                x, target = x.to(parameter.device), target.to(parameter.device)
            if num_steps is not None:
                x = x.expand(num_steps, *x.shape)
            y_seq = all_steps(x)
            host.functional.reset_net(model)
            batch = _right(y_seq, target, cumulative)
            if right is not None and batch.shape != right.shape:
                raise ValueError(
                    f"every batch must have the same number of time steps, got "
                    f"{len(batch)} after {len(right)}"
                )
            right = batch if right is None else right + batch
            count += target.numel()
    if right is None:
        raise ValueError("batches is empty")
    return right, count


def _all_steps(model: nn.Module) -> Callable[[Tensor], Any]:
    """What gives the logits of all steps: a method of the model's own, or the model."""
    inner = model
    while isinstance(inner, _WRAPPERS):
        inner = inner.module
    own = getattr(inner, "step_logits", None)
    return own if callable(own) else model
