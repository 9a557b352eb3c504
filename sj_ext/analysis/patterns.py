r"""Which spike trains a neuron can fire, and how its initial potential widens the choice.

An IF neuron without leak and with soft reset,

.. math::
    v_t^- = v_{t-1} + w x_t, \quad s_t = \Theta(v_t^- - v_{th}), \quad v_t = v_t^- - v_{th} s_t,

starts at :math:`v_{-1} = V[0]`. With :math:`V[0] = 0` many output trains are out of reach, whatever
the input and the weight; other initial potentials reach some of them.

Source: Shen et al., "Rethinking the Membrane Dynamics and Optimization Objectives of Spiking Neural
Networks", NeurIPS 2024.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import checks, host
from ..arguments import checked
from .axes import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MAPPING_STEPS = 12


def firing_patterns(
    current: Tensor | Sequence[float] | float,
    v_init: Tensor | Sequence[float] | float | None = None,
    *,
    num_steps: int = 4,
    node: nn.Module | None = None,
) -> Tensor:
    """Spike trains under a constant input current, for every current and initial potential.

    Args:
        current: The input of every step. It is broadcast with ``v_init``: for all pairs of K
            potentials and M currents give ``[K, 1]`` and ``[M]``.
        v_init: The initial membrane potential V[0]. By default the node's own (0 for IF).
        num_steps: T.
        node: A SpikingJelly neuron; it is copied, and its own state is left alone. By default an
            IF neuron with threshold 1 and soft reset.

    Returns:
        Where the neuron fires: bool ``[T, *]``, with ``*`` the shape that ``current`` and
        ``v_init`` broadcast to (``[1]`` for two numbers).

    Raises:
        TypeError: ``node`` is not a neuron of SpikingJelly, or ``num_steps`` not an int.
        ValueError: ``num_steps`` is below 1, a value is not finite, ``current`` and ``v_init`` do
            not broadcast, or ``v_init`` is given for a node that has no membrane potential ``v``.

    Example::

        >>> firing_patterns(0.25, [0.0, 0.25, 0.5]).int().T.tolist()
        [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]
    """
    _check_steps(num_steps)
    node, dtype, device = _fresh(node, v_init)
    inputs = _values("current", current, dtype, device)
    start = None
    if v_init is not None:
        start = _values("v_init", v_init, dtype, device)
        try:
            inputs, start = torch.broadcast_tensors(inputs, start)
        except RuntimeError as error:
            raise ValueError(
                f"current and v_init must broadcast, got the shapes {list(inputs.shape)} and "
                f"{list(start.shape)}"
            ) from error
    return _fire(node, inputs.expand(num_steps, *inputs.shape), start)


def pattern_mapping(
    v_init: Tensor | Sequence[float] | float,
    weights: Tensor | Sequence[float] | float,
    *,
    num_steps: int = 4,
    node: nn.Module | None = None,
) -> Tensor:
    """Which output spike train can follow from which input spike train.

    All 2^T binary inputs, scaled by every weight, are put into one neuron, from every initial
    potential.

    Args:
        v_init: Initial membrane potentials to choose from.
        weights: Weights to choose from.
        num_steps: T, 1 to 12.
        node: A SpikingJelly neuron, as in :func:`firing_patterns`.

    Returns:
        ``reachable``, bool ``[2^T, 2^T]``: whether some weight and some initial potential map the
        input of the column to the output of the row. A train's index is the binary number that it
        spells with the first step as the highest digit: for T = 4, ``0001`` (index 1) is a spike at
        the last step. ``reachable.sum()`` is the number of pairs.

    Raises:
        TypeError: ``node`` is not a neuron of SpikingJelly, or ``num_steps`` not an int.
        ValueError: ``num_steps`` is outside 1 to 12, a value is not finite, ``v_init`` or
            ``weights`` is empty, or the node has no membrane potential ``v``.

    Example::

        >>> int(pattern_mapping(0.0, 1.0).sum()), int(pattern_mapping(0.0, [0.5, 1.0]).sum())
        (16, 31)
    """
    _check_steps(num_steps, MAX_MAPPING_STEPS)
    node, dtype, device = _fresh(node, v_init)
    starts = _values("v_init", v_init, dtype, device).reshape(-1, 1, 1)
    scales = _values("weights", weights, dtype, device).reshape(-1, 1)
    digits = 2 ** torch.arange(num_steps - 1, -1, -1, device=device)
    inputs = torch.arange(2**num_steps, device=device)
    bits = (inputs & digits[:, None]) != 0  # [T, 2^T]

    shape = (len(starts), len(scales), len(inputs))
    x_seq = (bits[:, None] * scales).unsqueeze(1).expand(num_steps, *shape)
    spikes = _fire(node, x_seq, starts.expand(shape))
    outputs = (spikes * digits.reshape(-1, 1, 1, 1)).sum(0)
    reachable = torch.zeros(len(inputs), len(inputs), dtype=torch.bool, device=device)
    reachable[outputs, inputs.expand(shape)] = True
    return reachable


@checked
def plot_firing_patterns(
    patterns: Tensor, labels: Sequence[object] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw spike trains as a raster: time to the right, one line for each train.

    Args:
        patterns: ``[T, *]`` from :func:`firing_patterns`.
        labels: What to write beside each line, for example the initial potentials.
        ax: Where to draw; by default the axes of a new figure (``ax.figure``).

    Raises:
        ValueError: ``labels`` and trains differ in number.
        RuntimeError: matplotlib is not installed and ``ax`` is not given.
    """
    trains = patterns.flatten(1).T.cpu()  # [K, T]
    if labels is not None and len(labels) != len(trains):
        raise ValueError(f"labels must be {len(trains)}, one for each train, got {len(labels)}")
    ax = axes_or_new(ax)
    ax.eventplot(
        [train.nonzero().flatten().numpy() + 1 for train in trains], linelengths=0.8, linewidths=3
    )
    ax.set_xlim(0.5, trains.shape[1] + 0.5)
    ax.set_xticks(range(1, trains.shape[1] + 1))
    ax.set_xlabel("time step")
    if labels is not None:
        ax.set_yticks(range(len(trains)), [str(label) for label in labels])
    return ax


@checked
def plot_pattern_mapping(reachable: Tensor, ax: Axes | None = None) -> Axes:
    """Draw which (output, input) pairs are reachable, as a matrix, with their number as the title.

    Args:
        reachable: ``[2^T, 2^T]`` from :func:`pattern_mapping`.
        ax: Where to draw; by default the axes of a new figure (``ax.figure``).

    Raises:
        RuntimeError: matplotlib is not installed and ``ax`` is not given.
    """
    ax = axes_or_new(ax)
    count = len(reachable)
    ax.imshow(reachable.cpu().numpy(), cmap="Greys", vmin=0, vmax=1.5, origin="lower")
    if count <= 16:
        digits = (count - 1).bit_length()
        trains = [format(index, f"0{digits}b") for index in range(count)]
        ax.set_xticks(range(count), trains, rotation=90)
        ax.set_yticks(range(count), trains)
    ax.set_xlabel("input")
    ax.set_ylabel("output")
    ax.set_title(f"{int(reachable.sum())} of {count * count} pairs")
    return ax


def _fresh(node: nn.Module | None, v_init: object) -> tuple[nn.Module, torch.dtype, torch.device]:
    """A copy of the node in its initial state, multi-step, and the dtype and device it needs."""
    if node is None:
        node = host.neuron.IFNode(v_threshold=1.0, v_reset=None)
    elif not isinstance(node, host.base.MemoryModule):
        raise TypeError(f"node must be a neuron of SpikingJelly, got {type(node).__name__}")
    # also of the default: its surrogate is one object that all of the host's nodes share
    node = copy.deepcopy(node)
    if v_init is not None and not hasattr(node, "v"):
        raise ValueError(f"v_init is given, but a {type(node).__name__} has no potential v to set")
    host.functional.reset_net(node)
    node.step_mode = "m"
    like = next(node.parameters(), torch.empty((), dtype=torch.float64))
    return node.eval(), like.dtype, like.device


def _values(
    name: str, values: Tensor | Sequence[float] | float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if isinstance(values, torch.Tensor):
        tensor = values.detach().to(device, dtype)
    else:
        alone = isinstance(values, Real) and not isinstance(values, bool)
        numbers = checks.numbers(name, (values,) if alone else values)
        tensor = torch.tensor(numbers, dtype=dtype, device=device)
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got {tensor.tolist()}")
    return torch.atleast_1d(tensor)


@torch.no_grad()
def _fire(node: nn.Module, x_seq: Tensor, v_init: Tensor | None) -> Tensor:
    if v_init is not None:
        node.v = v_init.clone()
    return node(x_seq.contiguous()) != 0


def _check_steps(num_steps: int, most: int | None = None) -> None:
    if not isinstance(num_steps, int) or isinstance(num_steps, bool):
        raise TypeError(f"num_steps must be an int, got {type(num_steps).__name__}")
    if num_steps < 1 or (most is not None and num_steps > most):
        allowed = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"num_steps must be {allowed}, got {num_steps}")
