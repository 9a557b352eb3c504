r"""The turn-on neuron: a leaky sum over time that is never reset.

.. math::
    U[t] = a\, U[t-1] + X[t], \qquad S[t] = \Theta(U[t] - v_{th})

Having no reset it is linear in its input and can be run backwards, which is what temporal
reversibility rests on.

Source: Hu et al., "High-Performance Temporal Reversible Spiking Neural Networks with O(L) Training
Memory and O(1) Inference Cost", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from ..inference import refuse_transforms
from ..ops.turn_on import op
from ..ops.turn_on.naive import state_dtype
from ..ops.turn_on.sequence import away_from_zero, turn_on
from ..surrogate import Rect
from .lazy import LazyParameter, LazyParametersInCheckpoints, is_lazy, made_for_training

__all__ = ["TurnOnNode"]


@checked
class TurnOnNode(LazyParametersInCheckpoints, host.FunctionalNode):
    r"""Turn-on neuron, :math:`U[t] = a U[t-1] + X[t]`, :math:`S[t] = \Theta(U[t] - v_{th})`.

    A potential at the threshold fires. With ``Rect``, what is kept for the backward pass is one bit
    per element and step, and the input itself where the decay is learned; any other surrogate keeps
    what it keeps. Double backward is not supported.

    Args:
        decay: where :math:`a` starts: a number, or with ``decay_shape='channel'`` also one number
            per channel.
        v_threshold: the threshold, in units of the potential.
        surrogate_function: the surrogate that stands for the Heaviside step :math:`\Theta` in the
            backward pass.
        step_mode: ``'s'`` or ``'m'``; both compute the same thing, ``'m'`` faster.
        backend: ``'torch'``, or ``'cupy'`` for the CUDA kernel, which takes float32, float16 and
            bfloat16, ``Rect`` and surrogates that emit CUDA code (``cuda_codes``).
        store_v_seq: whether to keep the potentials of all steps in ``v_seq`` (step mode ``'m'``).
        decay_shape: ``'layer'`` for one decay, ``'channel'`` for one per channel (axis 1 of
            ``[N, C, *]``). The number of channels is taken from ``decay``, the first input or the
            checkpoint that is loaded.
        learnable_decay: whether ``decay`` is a parameter or a buffer.
        min_decay: the smallest size of the decay that the neuron computes with; 0 for none. A
            smaller learned decay counts as ``min_decay`` with its own sign, and its gradient
            passes unchanged, so that it can come back or cross over to the other sign.

    Attributes:
        decay: the parameter or buffer, ``[1]`` or ``[C]``. :attr:`effective_decay` is what the
            neuron computes with.
        v: the potential, ``[N, *]``, 0 until the first step after a reset. It is kept in float32
            for 16-bit inputs, so that both step modes round alike.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``; the output is like the
        input.

    Raises:
        ValueError: ``decay`` has the wrong size or is NaN, infinite or smaller than ``min_decay``
            in size; another argument is out of range; the input's channels or shape do not go with
            the decay or the potential.
        TypeError: the input is not of a floating-point dtype, or on ``'cupy'`` of a dtype or with a
            surrogate that the kernel does not take.
        RuntimeError: ``backend='cupy'`` without CuPy, or on a tensor that is not on a CUDA device.

    Source: Hu et al., ICML 2024 (T-RevSNN).
    """

    cupy_dtypes = op.DTYPES
    decay: torch.Tensor
    v: torch.Tensor | float

    def __init__(
        self,
        decay: float | Sequence[float] | torch.Tensor = 0.5,
        v_threshold: float = 0.5,
        surrogate_function: Callable[[torch.Tensor], torch.Tensor] = Rect(),  # noqa: B008
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
        *,
        decay_shape: str = "layer",
        learnable_decay: bool = True,
        min_decay: float = 1e-3,
    ):
        v_threshold = checks.number("v_threshold", v_threshold)
        checks.surrogate(surrogate_function)
        checks.choice("decay_shape", decay_shape, ("layer", "channel"))
        min_decay = checks.number("min_decay", min_decay, at_least=0)
        start = _checked_decay(decay, decay_shape, min_decay)
        # A host's BaseNode wants a float threshold; there is no reset, and 0 is where it starts.
        super().__init__(v_threshold, 0.0, surrogate_function, False, step_mode, backend, False)
        self.store_v_seq = store_v_seq
        self.decay_shape = decay_shape
        self.min_decay = min_decay
        # what a lazy decay is filled with; a tensor on the meta device tells no value
        self._decay_init = 0.5 if start.is_meta else float(start[0])
        if not isinstance(decay, torch.Tensor):
            start = start.to(torch.get_default_device())
        if not learnable_decay:  # one number stands for all channels as long as they are alike
            self.register_buffer("decay", start)
        elif decay_shape == "channel" and start.numel() == 1:
            self.decay = LazyParameter("decay")
        else:
            self.decay = nn.Parameter(start)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The backends that this node has, in both step modes."""
        return ("torch", "cupy")

    @property
    def learnable_decay(self) -> bool:
        """Whether the decay is a parameter."""
        return "decay" in self._parameters

    @property
    def effective_decay(self) -> torch.Tensor:
        """The decay that the neuron computes with: ``decay``, kept ``min_decay`` away from 0."""
        return away_from_zero(self.decay, self.min_decay)

    def step(self, x: torch.Tensor, states: host.States) -> tuple[torch.Tensor, host.States]:
        spike, states, _ = self.sequence(x.unsqueeze(0), states, False)
        return spike[0].clone(), states  # no view: containers of the host keep and detach outputs

    def sequence(
        self, x_seq: torch.Tensor, states: host.States, store_v_seq: bool
    ) -> tuple[torch.Tensor, host.States, torch.Tensor | None]:
        _check_floating(self, x_seq)
        refuse_transforms(type(self).__name__)
        if not len(x_seq):
            none = x_seq.new_empty(x_seq.shape, dtype=state_dtype(x_seq.dtype))
            return torch.empty_like(x_seq), states, none if store_v_seq else None
        (v,) = states
        if v is not None and v.shape != x_seq.shape[1:]:
            raise ValueError(
                f"the potential v has shape {list(v.shape)}, but the input of one step "
                f"{list(x_seq.shape[1:])}: call reset() before the shape changes"
            )
        decay = self._decay_for(x_seq)
        run = op.turn_on if self.backend == "cupy" else turn_on
        spike, v, v_seq = run(
            x_seq,
            v,
            decay,
            v_threshold=self.v_threshold,
            surrogate_function=self.surrogate_function,
            store_v_seq=store_v_seq,
        )
        return spike, (v,), v_seq

    def _states(self, inputs: tuple[torch.Tensor, ...], step_mode: str) -> host.States:
        (x,) = inputs
        if step_mode == "m" and not len(x):  # no step, no change of the potential
            return (self.v,)
        if step_mode == "m" and self.backend == "cupy" and not isinstance(self.v, torch.Tensor):
            return (None,)  # the kernel starts from 0 without being given zeros
        return super()._states(inputs, step_mode)

    def multi_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], host.States]:
        """The host's form with explicit states; no step, no change of the potential."""
        if not len(inputs[0]):
            return (torch.empty_like(inputs[0]),), states
        return super().multi_step_functional_forward(inputs, states, **kwargs)

    def materialize_states(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, step_mode: str
    ) -> host.States:
        """The potential as a tensor of the input's shape, in float32 for 16-bit inputs."""
        x = inputs[0]
        if step_mode == "m":
            x = x[0] if len(x) else x.new_empty(x.shape[1:])
        _check_floating(self, x)
        (v,) = states
        if not (isinstance(v, torch.Tensor) and v.shape == x.shape):
            (v,) = super().materialize_states((x,), (v,), "s")  # the host's way with other shapes
        return (v.to(dtype=state_dtype(x.dtype), device=x.device),)

    def extra_repr(self) -> str:
        decay = "per channel"
        if self.decay_shape == "layer":
            decay = "meta" if self.decay.is_meta else f"{self.decay.item():.4g}"
        return (
            f"decay={decay}, learnable_decay={self.learnable_decay}, "
            f"v_threshold={self.v_threshold}, step_mode={self.step_mode}, backend={self.backend}"
        )

    def _decay_for(self, x_seq: torch.Tensor) -> torch.Tensor:
        """The effective decay, shaped to broadcast to ``[N, *]``."""
        if self.decay_shape == "layer":
            return self.effective_decay
        if x_seq.dim() < 3:
            raise ValueError(
                f"decay_shape='channel' needs an input [N, C, *] in one step, got "
                f"{list(x_seq.shape[1:])}"
            )
        channels = x_seq.shape[2]
        if is_lazy(self.decay):
            self._make_decay(channels, x_seq.device)
        alike = self.decay.numel() == 1 and not self.learnable_decay
        if self.decay.numel() != channels and not alike:
            raise ValueError(
                f"decay has {self.decay.numel()} channels, but the input of one step "
                f"{list(x_seq.shape[1:])} has {channels} on axis 1"
            )
        return self.effective_decay.view(-1, *[1] * (x_seq.dim() - 3))

    def _make_decay(self, channels: int, device: torch.device | None = None) -> None:
        with made_for_training():
            self.decay.materialize((channels,), device=device)  # type: ignore[attr-defined]
            self.decay.fill_(self._decay_init)

    def _make_parameter(self, name: str, shape: torch.Size) -> None:
        self._make_decay(shape.numel())

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(prefix + "decay")
        fixed = self.decay_shape == "channel" and not self.learnable_decay
        if fixed and saved is not None:
            self.decay = self.decay[:1].expand(saved.numel()).clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_floating(node: TurnOnNode, x: torch.Tensor) -> None:
    checks.floating(f"the input of {type(node).__name__}", x)


def _checked_decay(decay: Any, decay_shape: str, min_decay: float) -> torch.Tensor:
    """The decay to start from as a float32 vector of its own."""
    own = not isinstance(decay, torch.Tensor)
    try:
        given = torch.as_tensor(decay, device="cpu") if own else decay
        kind = torch.bool if given.is_complex() else given.dtype
    except (TypeError, ValueError, RuntimeError):
        kind = torch.bool
    if kind == torch.bool:
        raise TypeError(f"decay must be a number or one per channel, got {decay!r}")
    start = given.detach().to(torch.float32, copy=True)
    if start.numel() != 1 and decay_shape == "layer":
        raise ValueError(
            f"decay must be one number with decay_shape='layer', got shape {list(start.shape)}; "
            "use decay_shape='channel' for one per channel"
        )
    if start.numel() == 0 or start.numel() != max(start.shape, default=1):
        raise ValueError(
            f"decay must be a number or one per channel, got shape {list(start.shape)}"
        )
    start = start.reshape(-1)
    if start.is_meta:  # a size without values
        return start
    if not torch.isfinite(start).all():
        raise ValueError(f"decay must be finite, got {decay!r}")
    # compared in float32, where a decay of min_decay itself may have been rounded
    if (start == 0).any() or (start.abs() < start.new_tensor(min_decay)).any():
        raise ValueError(
            f"decay must not be 0, nor smaller than min_decay={min_decay} in size, got {decay!r}"
        )
    return start
