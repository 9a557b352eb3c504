r"""Surrogate gradients: a Heaviside step forwards, a smooth or flat window backwards.

All are centred on the threshold: their argument is :math:`x = v - v_{th}`. They emit the CUDA code
that the CuPy kernels of SpikingJelly 0.0.0.0.14 ask for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from . import checks, host

__all__ = ["ClosedRect", "DSpike", "Rect"]


class _CudaWindow(host.SurrogateFunction):
    """A surrogate whose gradient is ``inside`` where ``|x| < half_width`` and 0 elsewhere."""

    #: whether both ends belong to the window
    _closed = False

    def _inside(self, x: str, dtype: str) -> str:
        """CUDA expression of the gradient inside the window."""
        raise NotImplementedError

    def _half_width(self) -> float:
        raise NotImplementedError

    def cuda_codes(self, y: str, x: str, dtype: str) -> str:
        """CUDA statement that assigns the gradient at ``x`` to ``y``.

        Args:
            y: left-hand side, a declaration such as ``'const float grad'`` included.
            x: the variable that holds ``v - v_threshold``.
            dtype: ``'float'`` or ``'half2'``.

        Raises:
            ValueError: any other ``dtype``.
        """
        inside, width = self._inside(x, dtype), _number(self._half_width(), dtype)
        if dtype == "float":
            compare = "<=" if self._closed else "<"
            return f"{y} = fabsf({x}) {compare} {width} ? {inside} : 0.0f;"
        compare = "__hle2" if self._closed else "__hlt2"
        return f"{y} = __hmul2({compare}(__habs2({x}), {width}), {inside});"

    def cuda_code(self, x: str, y: str, dtype: str = "fp32") -> str:
        """The same for the older kernels of 0.0.0.0.14 (QIF, EIF, Izhikevich).

        Args:
            x: the variable that holds ``v - v_threshold``.
            y: name of the variable that is declared and assigned.
            dtype: ``'fp32'`` or ``'fp16'``.

        Raises:
            ValueError: any other ``dtype``.
        """
        types = {"fp32": "float", "fp16": "half2"}
        if dtype not in types:
            raise ValueError(f"dtype must be one of {tuple(types)}, got {dtype!r}")
        return self.cuda_codes(f"const {types[dtype]} {y}", x, types[dtype]) + "\n"


def _number(value: float, dtype: str) -> str:
    if dtype == "float":
        return f"{value!r}f"
    if dtype == "half2":
        return f"__float2half2_rn({value!r}f)"
    raise ValueError(f"dtype must be 'float' or 'half2', got {dtype!r}")


class _RectStep(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, alpha: float, closed: bool) -> torch.Tensor:
        return (x >= 0).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, alpha, closed = inputs
        half_width = 0.5 / alpha
        ctx.save_for_backward(x.abs() <= half_width if closed else x.abs() < half_width)
        ctx.alpha = alpha

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (window,) = ctx.saved_tensors
        return grad_output * window * ctx.alpha, None, None


class _Rectangle(_CudaWindow):
    """What the open and the closed window share."""

    def __init__(self, alpha: float = 1.0, spiking: bool = True):
        super().__init__(checks.number("alpha", alpha, above=0), checks.flag("spiking", spiking))

    @staticmethod
    def primitive_function(x: torch.Tensor, alpha: float) -> torch.Tensor:
        """The ramp whose derivative the window is."""
        return (alpha * x + 0.5).clamp(0.0, 1.0)

    def _inside(self, x: str, dtype: str) -> str:
        return _number(self.alpha, dtype)

    def _half_width(self) -> float:
        return 0.5 / self.alpha


class Rect(_Rectangle):
    r"""Rectangular window: :math:`\Theta'(x) = \alpha` where :math:`|x| < 1 / (2\alpha)`, else 0.

    Its primitive function is :math:`\mathrm{clip}(\alpha x + 1/2, 0, 1)`. With ``alpha=1`` and a
    threshold of 0.5 the gradient is 1 for potentials between 0 and 1, and 0 at both ends;
    :class:`ClosedRect` has the ends inside. Where the host has a ``Rect`` of its own
    (SpikingJelly 2.x), ``sj_ext.surrogate.Rect`` is that class.

    Args:
        alpha: height of the window and inverse of its width.
        spiking: a Heaviside step forwards if true, the primitive function if not.

    Shapes:
        Any shape in, the same shape out.

    Raises:
        ValueError: ``alpha`` is not a finite number above 0.

    Source: Wu et al., "Spatio-temporal backpropagation for training high-performance spiking neural
    networks", Frontiers in Neuroscience 2018.
    """

    @staticmethod
    def spiking_function(x: torch.Tensor, alpha: float) -> torch.Tensor:
        """Heaviside step with the rectangular gradient."""
        return _RectStep.apply(x, alpha, False)


Rect = getattr(host.surrogate, "Rect", Rect)  # type: ignore[misc]  # the host's own where it is


class ClosedRect(_Rectangle):
    r"""Closed rectangular window: :math:`\Theta'(x) = \alpha` where :math:`|x| \le 1 / (2\alpha)`.

    :class:`Rect` with both ends inside: with ``alpha=1`` and a threshold of 0.5 the gradient is 1
    for potentials from 0 to 1 inclusive. The two differ where potentials lie exactly on an end,
    which they do where biases are 0 and inputs are empty: an open window lets no gradient out of a
    potential of 0, a closed one does. The program of T-RevSNN has the closed window.

    Args:
        alpha: height of the window and inverse of its width.
        spiking: a Heaviside step forwards if true, :math:`\mathrm{clip}(\alpha x + 1/2, 0, 1)` if
            not.

    Shapes:
        Any shape in, the same shape out.

    Raises:
        ValueError: ``alpha`` is not a finite number above 0.

    Source: Hu et al., "High-Performance Temporal Reversible Spiking Neural Networks with O(L)
    Training Memory and O(1) Inference Cost", ICML 2024, the public program.
    """

    _closed = True

    @staticmethod
    def spiking_function(x: torch.Tensor, alpha: float) -> torch.Tensor:
        """Heaviside step with the gradient of the closed window."""
        return _RectStep.apply(x, alpha, True)


def _away_from_zero(temperature: torch.Tensor) -> torch.Tensor:
    """The temperature, kept where ``tanh(b x) / tanh(b / 2)`` is not 0 / 0; it is even in b."""
    return temperature.abs().clamp_min(1e-3)


def _dspike_slope(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    slope = b / (2 * torch.tanh(b / 2)) / torch.cosh(b * x).square()
    return torch.where(x.abs() < 0.5, slope, 0.0)


class _DSpikeStep(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        return (x >= 0).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, temperature = ctx.saved_tensors
        b = _away_from_zero(temperature).to(x)
        grad_x = grad_temperature = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output * _dspike_slope(x, b)
        if ctx.needs_input_grad[1]:
            half = torch.tanh(b / 2)
            by_b = x / torch.cosh(b * x).square() / (2 * half) - torch.tanh(b * x) * (
                1 - half.square()
            ) / (4 * half.square())
            by_b = torch.where(x.abs() < 0.5, by_b, 0.0) * torch.sign(temperature).to(x)
            grad_temperature = (grad_output * by_b).sum().to(temperature)
        return grad_x, grad_temperature


class DSpike(_CudaWindow):
    r"""The Dspike family: a tanh that is stretched to meet the step at both ends of its window.

    .. math::
        D_b(x) = \frac{\tanh(b x)}{2 \tanh(b / 2)} + \frac12 \quad (|x| < 1/2), \qquad
        \Theta'(x) = D_b'(x),

    0 below and 1 above the window. A small temperature gives the rectangular window, a large one a
    peak at the threshold. A learnable temperature gets the gradient of :math:`D_b` with respect to
    :math:`b`, as the input does with respect to :math:`x`.

    Args:
        temperature: b, above 0; kept in the attribute ``alpha``, as the host's surrogates do.
        spiking: a Heaviside step forwards if true, :math:`D_b` if not.
        learnable: make the temperature a parameter. The CuPy kernels of SpikingJelly 0.0.0.0.14
            compile their constants in and return no gradient for them, so they refuse one.

    Shapes:
        Any shape in, the same shape out; the temperature is one number.

    Raises:
        ValueError: ``temperature`` is not a finite number above 0.

    Source: Li et al., "Differentiable Spike: Rethinking Gradient-Descent for Training Spiking
    Neural Networks", NeurIPS 2021.
    """

    def __init__(self, temperature: float = 3.0, spiking: bool = True, *, learnable: bool = False):
        b = checks.number("temperature", temperature, above=0)
        start = nn.Parameter(torch.tensor(b)) if checks.flag("learnable", learnable) else b
        super().__init__(start, checks.flag("spiking", spiking))

    @property
    def learnable(self) -> bool:
        """Whether the temperature is a parameter."""
        return isinstance(self.alpha, nn.Parameter)

    @staticmethod
    def spiking_function(x: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
        """Heaviside step with the gradient of :math:`D_b`."""
        return _DSpikeStep.apply(x, torch.as_tensor(alpha, device=x.device))

    @staticmethod
    def primitive_function(x: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
        """:math:`D_b(x)`."""
        b = _away_from_zero(torch.as_tensor(alpha, device=x.device)).to(x)
        x = x.clamp(-0.5, 0.5)
        return torch.tanh(b * x) / (2 * torch.tanh(b / 2)) + 0.5

    def _inside(self, x: str, dtype: str) -> str:
        if self.learnable:
            raise RuntimeError(
                "cuda_codes: the CuPy kernels compile the temperature in and give no gradient for "
                "it; use DSpike(learnable=False) or backend='torch'"
            )
        b = _number(self.alpha, dtype)
        scale = _number(self.alpha / (2 * math.tanh(self.alpha / 2)), dtype)
        if dtype == "float":
            return f"{scale} / (coshf({b} * {x}) * coshf({b} * {x}))"
        # cosh(bx)^2 = (exp(bx) + exp(-bx))^2 / 4, which half2 has no function for
        e = f"__hadd2(h2exp(__hmul2({b}, {x})), h2exp(__hneg2(__hmul2({b}, {x}))))"
        four = _number(4.0, dtype)
        return f"__h2div(__hmul2({scale}, {four}), __hmul2({e}, {e}))"

    def _half_width(self) -> float:
        return 0.5
