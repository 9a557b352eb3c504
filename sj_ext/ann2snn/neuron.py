r"""The neuron that conversions use: integrate-and-fire with every option of the eleven methods.

.. math::
    H[t] &= V[t-1] + X[t] + \delta \theta, \qquad V[0] = u \, \theta \\
    S[t] &= \Theta(H[t] - \theta) - S^-[t], \qquad
    V[t] = H[t] - \theta S^+[t] + \theta^- S^-[t]

``u`` is the initial potential and ``delta`` the constant current, both as shares of the threshold.
The steps are functions without state; the node only holds what lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked

__all__ = ["ConversionIFNode", "counted_step", "leaky_step"]

Surrogate = Callable[[torch.Tensor], torch.Tensor]


def leaky_step(
    h: torch.Tensor, threshold: float, slope: float, surrogate: Surrogate
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Spikes of both signs with an imbalanced threshold: the rate of a leaky ReLU.

    .. math::
        S = \Theta(H - \theta) - \Theta(-H - \theta / \alpha), \qquad
        V = H - \theta S^+ + (\theta / \alpha) S^-

    A negative drive :math:`z` gives :math:`-\alpha |z|` on average.

    Args:
        h: potential before the spike, ``[N, *]``.
        threshold: :math:`\theta`.
        slope: :math:`\alpha`, the slope of the leaky ReLU below 0.
        surrogate: step function with a surrogate gradient.

    Returns:
        Spikes in {-1, 0, 1} and the potential after them, ``[N, *]``.

    Raises:
        ZeroDivisionError: ``slope`` is 0.

    Source: Kim et al., "Spiking-YOLO", AAAI 2020.
    """
    up, down = surrogate(h - threshold), surrogate(-h - threshold / slope)
    return up - down, h - threshold * up + (threshold / slope) * down


def counted_step(
    h: torch.Tensor, count: torch.Tensor, threshold: float, eps: float, surrogate: Surrogate
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Negative spikes that take back a positive one: the sum of spikes never falls below 0.

    .. math::
        V' = H - \theta S^+, \quad C' = C + S^+, \quad
        S^- = [V' \le -\epsilon \theta \;\mathrm{and}\; C' > 0], \quad
        V = V' + \theta S^-, \quad C = C' - S^-

    Both can happen in one step; then the output is 0. The published program compares with an
    absolute -0.001; here it is a share of the threshold, so that scales do not matter.

    Args:
        h: potential before the spike, ``[N, *]``.
        count: sum of the spikes so far, ``[N, *]``.
        threshold: :math:`\theta`.
        eps: how far below 0 the potential must be, as a share of the threshold.
        surrogate: step function with a surrogate gradient.

    Returns:
        Spikes in {-1, 0, 1}, the potential and the count after them, ``[N, *]`` each.

    Raises:
        RuntimeError: shapes that do not fit.

    Source: Hu et al., "Fast-SNN", TPAMI 2023.
    """
    up = surrogate(h - threshold)
    v, count = h - threshold * up, count + up
    down = surrogate(-v - eps * threshold) * (count > 0.5).to(v)
    return up - down, v + threshold * down, count - down


class _SequenceNode(host.HostBackend, host.neuron.IFNode):
    """The host's IF node, with a ``backend`` that is a contract where the host has one."""


_SEQUENCE_BACKENDS: tuple[str, ...] = getattr(
    _SequenceNode(step_mode="m"), "supported_backends", ("torch",)
)


class StartingNode(host.FunctionalNode):
    """A node whose states at the beginning of a run are those of :meth:`started`."""

    def started(self, x: torch.Tensor, states: host.States) -> host.States:
        """The states to begin with, where a reset leaves scalars, for one step's input ``x``."""
        raise NotImplementedError

    def materialize_states(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, step_mode: str
    ) -> host.States:
        """States of a reset are replaced, on 2.x also those of another shape than the input's."""
        if step_mode == "m" and not len(inputs[0]):
            return states
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        v = states[0]
        restarts = isinstance(v, torch.Tensor) and host.RESTARTS_ON_NEW_SHAPE
        if not isinstance(v, torch.Tensor) or (restarts and v.shape != x.shape):
            states = self.started(x, states)
        return super().materialize_states(inputs, states, step_mode)


@checked
class ConversionIFNode(StartingNode):
    r"""Integrate-and-fire neuron for networks converted from trained ones.

    Without negative spikes, sequences run on the host's own multi-step IF node and its kernels.

    Args:
        v_threshold: :math:`\theta`; 1 in a converted network, whose scalers carry the units.
        v_init: initial potential as a share of the threshold: a number, a tensor that broadcasts
            to ``[N, *]`` from the right (``[C, 1, 1]`` per channel, ``[C, H, W]`` per neuron), or
            ``'learn'`` for a parameter that starts from 1/2. For a learned one with a shape of its
            own, ``swap_neurons(net, {ConversionIFNode: with_learnable_imp(ConversionIFNode)})``.
        reset: ``'soft'`` subtracts the threshold, ``'hard'`` sets the potential to 0.
        negative: ``None``; ``('leaky', slope)`` (:func:`leaky_step`); ``('counted', eps)``, or
            ``'counted'`` (:func:`counted_step`).
        shift: constant current per step as a share of the threshold, a number or a tensor as for
            ``v_init``.
        step_mode: ``'s'`` or ``'m'``.
        surrogate_function: gradient of the spike, for training after the conversion.
        detach_reset: keep the reset out of the gradient.
        backend: as in the host's nodes.
        store_v_seq: keep the potentials of all steps in ``v_seq``.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or negative spikes with a hard reset.

    Source: the sources of :mod:`sj_ext.ann2snn.presets`.
    """

    v_init: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_init: float | str | torch.Tensor = 0.0,
        reset: str = "soft",
        negative: tuple[str, float] | str | None = None,
        shift: float | torch.Tensor = 0.0,
        step_mode: str = "s",
        *,
        surrogate_function: Surrogate = host.surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
        store_v_seq: bool = False,
    ):
        checks.choice("reset", reset, ("soft", "hard"))
        negative = checked_negative(negative)
        if negative is not None and reset == "hard":
            raise ValueError(f"negative={negative!r} needs reset='soft', got 'hard'")
        # before the base class, which asks for supported_backends and must not take them as modules
        object.__setattr__(self, "_negative", negative)
        super().__init__(
            v_threshold=checks.number("v_threshold", v_threshold, above=0),
            v_reset=None if reset == "soft" else 0.0,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        if negative is not None and negative[0] == "counted":
            self.register_memory("count", 0.0)
            self.state_names = ("v", "count")
        if isinstance(v_init, str):
            if v_init != "learn":
                raise ValueError(f"v_init must be a number, a tensor or 'learn', got {v_init!r}")
            self.v_init = nn.Parameter(torch.tensor(0.5))
        else:
            self.register_buffer("v_init", _share("v_init", v_init))
        self.register_buffer("shift", _share("shift", shift))
        self._held: tuple[Any, ...] | None = None

    @property
    def reset_kind(self) -> str:
        """``'soft'`` or ``'hard'``."""
        return "soft" if self.v_reset is None else "hard"

    @property
    def negative(self) -> tuple[str, float] | None:
        """The kind of negative spikes and its constant, or ``None``."""
        return self._negative

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The host IF node's in the present step mode; only Torch with negative spikes."""
        if self._negative is not None or getattr(self, "_step_mode", "s") == "s":
            return ("torch",)
        return _SEQUENCE_BACKENDS

    def initial_potential(self, x: torch.Tensor) -> torch.Tensor:
        """V[0] for an input ``[N, *]`` of one step: a fresh tensor of its shape.

        Raises:
            ValueError: ``v_init`` does not broadcast to the shape of ``x``.
        """
        try:
            return (self.v_init * self.v_threshold).to(x).expand(x.shape).clone()
        except RuntimeError as error:
            raise ValueError(
                f"v_init of shape {tuple(self.v_init.shape)} does not broadcast to an input of "
                f"shape {tuple(x.shape)} in one step; one value per neuron fixes the resolution"
            ) from error

    def started(self, x: torch.Tensor, states: host.States) -> host.States:
        """The initial potential in place of the scalar that a reset leaves."""
        return (self.initial_potential(x), *states[1:])

    def step(self, x: torch.Tensor, states: host.States) -> tuple[torch.Tensor, host.States]:
        """One step of ``x`` ``[N, *]``."""
        h = states[0] + self._current(x)
        if self._negative is None:
            spike = self.surrogate_function(h - self.v_threshold)
            reset = spike.detach() if self.detach_reset else spike
            soft = self.v_reset is None
            return spike, (h - self.v_threshold * reset if soft else h * (1.0 - reset),)
        kind, constant = self._negative
        if kind == "leaky":
            spike, v = leaky_step(h, self.v_threshold, constant, self.surrogate_function)
            return spike, (v,)
        spike, v, count = counted_step(
            h, states[1], self.v_threshold, constant, self.surrogate_function
        )
        return spike, (v, count)

    def sequence(
        self, x_seq: torch.Tensor, states: host.States, store_v_seq: bool
    ) -> tuple[torch.Tensor, host.States, torch.Tensor | None]:
        """All steps of ``x_seq`` ``[T, N, *]``, on the host's kernels where they can do it."""
        if self._negative is not None or not len(x_seq):
            return super().sequence(x_seq, states, store_v_seq)
        kernel = self._kernel()
        kernel.store_v_seq, kernel.v = store_v_seq, states[0]
        spikes = kernel(self._current(x_seq))
        v_seq = kernel.v_seq if store_v_seq else None
        states = (kernel.v,)
        kernel.reset()
        return spikes, states, v_seq

    def _current(self, x: torch.Tensor) -> torch.Tensor:
        shift = self.shift
        if shift.dim() == 0 and not shift:
            return x
        return x + (shift * self.v_threshold).to(x)

    def _kernel(self) -> Any:
        """The host's IF node that runs sequences; not a child, since it keeps nothing."""
        if self._held is None:
            self._held = (_SequenceNode(step_mode="m"),)
        kernel: Any = self._held[0]
        for name in ("v_threshold", "v_reset", "surrogate_function", "detach_reset"):
            setattr(kernel, name, getattr(self, name))
        if hasattr(kernel, "supported_backends"):
            kernel.backend = self.backend
        return kernel.train(self.training)

    def extra_repr(self) -> str:
        def told(value: torch.Tensor) -> str:
            return f"{value.item():.4g}" if value.numel() == 1 else str(list(value.shape))

        return (
            f"{super().extra_repr()}, v_init={told(self.v_init)}, shift={told(self.shift)}, "
            f"negative={self._negative}"
        )


def checked_negative(negative: object) -> tuple[str, float] | None:
    """``negative`` as a pair, or ``None``.

    Raises:
        TypeError: it is neither ``None`` nor a pair of a name and a number.
        ValueError: an unknown name, or a constant out of range.
    """
    if negative is None:
        return None
    if negative == "counted":
        return ("counted", 1e-3)
    if not isinstance(negative, tuple) or len(negative) != 2:
        raise TypeError(
            f"negative must be None, ('leaky', slope) or ('counted', eps), got {negative!r}"
        )
    kind, constant = negative
    if kind not in ("leaky", "counted"):
        raise ValueError(f"negative must be 'leaky' or 'counted' with a number, got {negative!r}")
    if kind == "leaky":
        return kind, checks.number("the slope of negative", constant, above=0, at_most=1)
    return kind, checks.number("the eps of negative", constant, at_least=0, below=1)


def _share(name: str, value: object) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} must be finite, got {value}")
        return value.detach().clone()
    return torch.tensor(checks.number(name, value))
