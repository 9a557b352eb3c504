r"""The turn-off neuron: a spiking neuron without memory over time.

.. math::
    S[t] = \Theta(X[t] - v_{th})

Every step stands for itself, so the steps fold into the batch. The gradient through a rectangular
window needs one bit per element, and one bit is what is kept for the backward pass.

Source: Hu et al., "High-Performance Temporal Reversible Spiking Neural Networks with O(L) Training
Memory and O(1) Inference Cost", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import checks, host
from ..arguments import checked
from ..inference import fire, gradient_wanted
from ..ops.windows import Window
from ..surrogate import Rect

__all__ = ["TurnOffNode"]


@checked
class TurnOffNode(host.base.MemoryModule):
    r"""Turn-off neuron, :math:`S[t] = \Theta(X[t] - v_{th})`.

    An input at the threshold fires. With ``Rect`` or ``ClosedRect`` one packed bit per element is
    kept for the backward pass and not the input; any other surrogate keeps what it keeps.

    Args:
        v_threshold: the threshold, in units of the input.
        surrogate_function: the surrogate that stands for the Heaviside step :math:`\Theta` in the
            backward pass.
        step_mode: ``'s'`` or ``'m'``; both compute the same thing.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in step mode ``'m'``; the output is like the
        input.

    Raises:
        TypeError: ``v_threshold`` is no number, ``surrogate_function`` cannot be called, or the
            input is not of a floating-point dtype.
        ValueError: ``v_threshold`` is NaN or infinite.

    Source: Hu et al., ICML 2024 (T-RevSNN).
    """

    _is_leaf_module = True  # as in host/node.py: NIRTorch names it and does not trace into it

    def __init__(
        self,
        v_threshold: float = 0.5,
        surrogate_function: Callable[[torch.Tensor], torch.Tensor] = Rect(),  # noqa: B008
        step_mode: str = "s",
    ):
        super().__init__()
        self.v_threshold = checks.number("v_threshold", v_threshold)
        self.surrogate_function = checks.surrogate(surrogate_function)
        host.own_surrogate(self)
        self.step_mode = step_mode

    def single_step_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes of one step, ``[N, *]``."""
        checks.floating(f"the input of {type(self).__name__}", x)
        window = Window.of(self.surrogate_function)
        if window is None:
            return fire(self.surrogate_function, x - self.v_threshold)
        if gradient_wanted(x):
            return _RectTurnOff.apply(x, self.v_threshold, window)
        return _step(x - self.v_threshold)

    def multi_step_forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        """Spikes of all steps, ``[T, N, *]``."""
        return self.single_step_forward(x_seq)

    def single_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], host.States]:
        """The same as :meth:`single_step_forward` in the host's form with explicit states: none."""
        return (self.single_step_forward(inputs[0]),), states

    def multi_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: host.States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], host.States]:
        """The same as :meth:`multi_step_forward` in the host's form with explicit states: none."""
        return (self.multi_step_forward(inputs[0]),), states

    def extra_repr(self) -> str:
        return f"v_threshold={self.v_threshold}, {super().extra_repr()}"


def _step(above: torch.Tensor) -> torch.Tensor:
    """1 where ``above`` is 0 or more, else 0; ``above`` itself is gone afterwards."""
    if torch.compiler.is_compiling():
        # torch.compile (2.11) loses the gradient of an output that comes out of another operator
        # as well, as it does out of one that writes in place
        return (above >= 0).to(above)
    return above.ge_(0)


class _RectTurnOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, v_threshold: float, window: Window) -> torch.Tensor:
        above = x - v_threshold
        ctx.save_for_backward(window.pack(above))
        ctx.window = window
        return _step(above)

    @staticmethod
    def backward(ctx: Any, grad_spike: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return ctx.window.apply(packed, grad_spike), None, None
