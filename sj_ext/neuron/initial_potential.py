r"""Learnable initial membrane potential (IMP).

A host neuron starts every sequence from a constant. Here it starts from a learned potential,

.. math::
    V[0] = \mathrm{squash}(\theta), \qquad V[t], S[t] = \text{host neuron}(V[t-1], X[t]),

which is put in place of the host's scalar before the first step after a reset. Everything after
that is the host's own neuron on the host's own kernels, which take :math:`V[0]` and return its
gradient.

Source: "Rethinking the Membrane Dynamics and Optimization Objectives of Spiking Neural
Networks", NeurIPS 2024.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..recomputation import Recomputable, may_run_again, outside_the_graph, state_of
from .lazy import LazyParameter, LazyParametersInCheckpoints, is_lazy, made_for_training

__all__ = ["OWN_KEYWORDS", "LearnableInitialPotential"]

#: axes of theta, besides the batch, that keep the input's size, by name of ``imp_shape``
_SHAPES = ("layer", "channel", "spatial", "neuron")


class LearnableInitialPotential(LazyParametersInCheckpoints, Recomputable, host.HostBackend):
    r"""Mixin that starts a host neuron from :math:`V[0] = \mathrm{squash}(\theta)`.

    Args:
        imp_shape: what shares one initial potential. For an input ``[N, C, H, W]``, theta is
            ``[1]`` for ``'layer'``, ``[1, C, 1, 1]`` for ``'channel'``, ``[1, 1, H, W]`` for
            ``'spatial'`` and ``[1, C, H, W]`` for ``'neuron'``; a tuple is theta's own shape, which
            must broadcast to ``[N, *]``. Sizes that are not known yet are taken from the first
            input or from the checkpoint that is loaded.
        imp_init: bounds of the uniform distribution that theta starts from, in units of the
            potential (of theta where ``imp_squash`` is given).
        imp_squash: ``None``, or a callable such as ``torch.sigmoid`` that bounds the potential.
        channel_axis: the channels' axis in ``[N, *]``; -1 for ``[N, L, C]`` inputs.

    Attributes:
        theta: the parameter. :func:`sj_ext.parameter_groups` keeps it out of weight decay.

    Raises:
        ValueError: an argument out of range, or an input whose shape does not go with theta's.
        TypeError: a host neuron that has no scalar initial potential ``v``.
    """

    #: the potential: a number until the first step, then a tensor
    v: Any

    _is_leaf_module = True  # as in host/node.py: NIRTorch names it and does not trace into it

    def __init__(
        self,
        *args: Any,
        imp_shape: str | Sequence[int] = "channel",
        imp_init: tuple[float, float] = (-0.2, 0.2),
        imp_squash: Callable[[torch.Tensor], torch.Tensor] | None = None,
        channel_axis: int = 1,
        **kwargs: Any,
    ):
        args, kwargs = host.checked_arguments(type(self), args, kwargs)
        super().__init__(*args, **kwargs)
        self._learn_initial_potential(imp_shape, imp_init, imp_squash, channel_axis)

    @classmethod
    def from_node(cls, node: nn.Module, **overrides: Any) -> LearnableInitialPotential:
        """``node`` with all that it has (attributes, parameters, memories, hooks), and a theta.

        Args:
            node: a neuron of the very class that this one was made from.
            **overrides: keywords of this class, and new values for attributes of ``node``.

        Raises:
            TypeError: ``node`` is of another class, or an override is neither of the two.
        """
        if cls.__bases__[1:] != (type(node),):
            raise TypeError(
                f"node must be of the class that {cls.__name__} was made from, got {node!r}"
            )
        own = {name: overrides.pop(name) for name in OWN_KEYWORDS if name in overrides}
        unknown = [name for name in overrides if not hasattr(node, name)]
        if unknown:
            raise TypeError(
                f"overrides: a {type(node).__name__} that exists has no {', '.join(unknown)} to "
                f"change; give attributes of it or {', '.join(OWN_KEYWORDS)}"
            )
        new = cls.__new__(cls)
        new.__dict__.update(vars(node))
        for name in ("_parameters", "_buffers", "_modules", "_memories", "_memories_rv"):
            new.__dict__[name] = copy.copy(vars(node)[name])
        for name, value in overrides.items():
            setattr(new, name, value)
        host.own_surrogate(new)
        new._learn_initial_potential(**{**OWN_KEYWORDS, **own})
        return new

    def _learn_initial_potential(
        self,
        imp_shape: str | Sequence[int],
        imp_init: tuple[float, float],
        imp_squash: Callable[[torch.Tensor], torch.Tensor] | None,
        channel_axis: int,
    ) -> None:
        _require_scalar_potential(self)
        self.imp_shape = _checked_shape(imp_shape)
        self.imp_init = _checked_init(imp_init)
        if imp_squash is not None:
            checks.function("imp_squash", imp_squash, "None or a function")
        self.imp_squash = imp_squash
        self.channel_axis = checks.integer("channel_axis", channel_axis)
        if channel_axis == 0:
            raise ValueError(
                "channel_axis must be an axis of [N, *] besides the batch axis 0, got 0"
            )
        self.theta = LazyParameter("theta")
        known = (1,) if self.imp_shape == "layer" else self.imp_shape
        if not isinstance(known, str):
            self._make_theta(known)

    def initial_potential(self, x: torch.Tensor) -> torch.Tensor:
        """V[0] for an input ``x`` of one step, ``[N, *]``: a fresh tensor of that shape.

        Never a view of theta: both hosts detach memories in place, which a view refuses.

        Raises:
            ValueError: theta does not broadcast to the shape of ``x``.
        """
        if is_lazy(self.theta):
            self._make_theta(self._theta_shape(x), x.device)
        self._check_shape(x)
        v = self.theta if self.imp_squash is None else self.imp_squash(self.theta)
        if not x.dim() and v.numel() == 1:
            v = v.reshape(())
        return v.to(x).expand(x.shape).clone(memory_format=torch.contiguous_format)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The host neuron's own forward, started from :meth:`initial_potential` after a reset."""
        if self._cut is not None or may_run_again():
            if torch.compiler.is_compiling():
                spikes: torch.Tensor = outside_the_graph(self, "forward", x, *args, **kwargs)
                return spikes
            with state_of(self):
                return self._started(x, *args, **kwargs)
        return self._started(x, *args, **kwargs)

    def _started(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        checks.floating(f"the input of {type(self).__name__}", x)
        if self.step_mode == "m" and not x.dim():
            raise ValueError("the input must be [T, N, *] in step mode 'm', got shape []")
        self.check_backend(x)
        first = x if self.step_mode == "s" else _first_step(x)
        if not isinstance(self.v, torch.Tensor) and first is not None:
            self.v = self.initial_potential(first)
        # past the mixin's own forward, whose duty is done
        return super(Recomputable, self).forward(x, *args, **kwargs)

    def materialize_states(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, step_mode: str
    ) -> host.States:
        """Explicit states: the learned potential for a scalar ``v``.

        On 2.x also for a ``v`` of another shape than the input's, as the host has it there.
        """
        checks.floating(f"the input of {type(self).__name__}", inputs[0])
        position = tuple(self._memories).index("v")
        x = inputs[0] if step_mode == "s" else _first_step(inputs[0])
        v = states[position]
        held = isinstance(v, torch.Tensor)
        if held and host.RESTARTS_ON_NEW_SHAPE and x is not None:
            held = self._fits(v, x)
        if x is not None and not held:
            states = (*states[:position], self.initial_potential(x), *states[position + 1 :])
        return super().materialize_states(inputs, states, step_mode)

    def extra_repr(self) -> str:
        squash = "" if self.imp_squash is None else f", imp_squash={self.imp_squash}"
        return f"{super().extra_repr()}, imp_shape={self.imp_shape!r}{squash}"

    def _fits(self, v: torch.Tensor, x: torch.Tensor) -> bool:
        return v.shape[v.dim() - x.dim() :] == x.shape  # levels may stand before the batch

    def _make_theta(self, shape: Sequence[int], device: torch.device | None = None) -> None:
        with made_for_training():
            if is_lazy(self.theta):
                self.theta.materialize(tuple(shape), device=device)
            self.theta.uniform_(*self.imp_init)

    def _theta_shape(self, x: torch.Tensor) -> tuple[int, ...]:
        if x.dim() < 2:
            raise ValueError(
                f"imp_shape={self.imp_shape!r} needs an input [N, *] with at least 2 axes in one "
                f"step, got shape {tuple(x.shape)}"
            )
        channel = self._channel(x)
        if self.imp_shape == "spatial" and x.dim() < 3:
            raise ValueError(
                f"imp_shape='spatial' needs an input with axes besides batch and channel, got "
                f"shape {tuple(x.shape)}"
            )
        keep = set(range(1, x.dim()))
        if self.imp_shape == "channel":
            keep = {channel}
        elif self.imp_shape == "spatial":
            keep -= {channel}
        return tuple(size if axis in keep else 1 for axis, size in enumerate(x.shape))

    def _channel(self, x: torch.Tensor) -> int:
        axis = self.channel_axis + x.dim() if self.channel_axis < 0 else self.channel_axis
        if not 0 < axis < x.dim():
            raise ValueError(
                f"channel_axis={self.channel_axis} is not an axis of an input of shape "
                f"{tuple(x.shape)} in one step, or is its batch axis"
            )
        return axis

    def _check_shape(self, x: torch.Tensor) -> None:
        theta = tuple(self.theta.shape)
        if isinstance(self.imp_shape, str) and self.imp_shape != "layer":
            wanted = self._theta_shape(x)
            if theta != wanted:
                raise ValueError(
                    f"imp_shape={self.imp_shape!r}: theta has shape {theta}, but an input of shape "
                    f"{tuple(x.shape)} in one step needs {wanted}"
                )
        fits = (len(theta) <= x.dim() or theta == (1,)) and all(
            have in (1, want) for have, want in zip(theta[::-1], tuple(x.shape)[::-1], strict=False)
        )
        if not fits:
            raise ValueError(
                f"imp_shape={self.imp_shape!r}: theta of shape {theta} does not broadcast to an "
                f"input of shape {tuple(x.shape)} in one step"
            )

    def _make_parameter(self, name: str, shape: torch.Size) -> None:
        if name == "theta":
            self._make_theta(shape)
        else:  # a lazy parameter of the neuron's own
            super()._make_parameter(name, shape)


#: keywords of the mixin's own, with their defaults
OWN_KEYWORDS = {
    name: parameter.default
    for name, parameter in inspect.signature(LearnableInitialPotential).parameters.items()
    if parameter.default is not parameter.empty
}


def _first_step(x_seq: torch.Tensor) -> torch.Tensor | None:
    """The first step of a sequence; an empty sequence has none, and starts nothing."""
    return x_seq[0] if x_seq.dim() and len(x_seq) else None


def _require_scalar_potential(node: nn.Module) -> None:
    v = getattr(node, "_memories_rv", {}).get("v")
    if not isinstance(v, float):
        raise TypeError(
            f"{type(node).__name__}: a learnable initial potential takes the place of a scalar "
            f"memory 'v', but this neuron's memories start as {getattr(node, '_memories_rv', {})}"
        )


def _checked_shape(imp_shape: object) -> str | tuple[int, ...]:
    if isinstance(imp_shape, str):
        return checks.choice("imp_shape", imp_shape, _SHAPES)
    if not isinstance(imp_shape, Sequence):
        raise TypeError(f"imp_shape must be one of {_SHAPES} or a tuple, got {imp_shape!r}")
    return checks.shape("imp_shape", imp_shape)


def _checked_init(imp_init: Any) -> tuple[float, float]:
    bounds = checks.numbers("imp_init", imp_init)
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(
            f"imp_init must be two finite bounds (low, high) with low <= high, got {imp_init!r}"
        )
    return bounds[0], bounds[1]
