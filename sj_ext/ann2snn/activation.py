r"""Activations to train a network with that is to be converted: one clip, with or without levels.

.. math::
    q(x) = \lambda \, \mathrm{clip}\left(\frac{\lfloor x L / \lambda + s \rfloor}{L}, 0, 1\right),
    \qquad L = \infty: \; q(x) = \mathrm{clip}(x, 0, \lambda)

A soft-reset integrate-and-fire neuron of threshold :math:`\lambda` that starts from
:math:`s \lambda` gives exactly this mean output after :math:`L` steps of a constant input, which is
why training with it prepares a conversion.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .. import checks
from ..arguments import checked, renamed

__all__ = ["QuantizedClip", "bound_group", "quantized_clip"]


class _QuantizedClip(torch.autograd.Function):
    """Straight through the floor; the bound gets what is clipped, and the rounding inside."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bound: torch.Tensor, levels: int | None, shift: float
    ) -> torch.Tensor:
        if levels is None:
            y = torch.minimum(x.clamp(min=0), bound)
        else:
            y = bound * ((x * levels / bound + shift).floor() / levels).clamp(0, 1)
        ctx.save_for_backward(x, bound, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, bound, y = ctx.saved_tensors
        (grad,) = grads
        above = x >= bound
        inside = (x >= 0) & ~above
        grad_bound = grad * torch.where(inside, (y - x) / bound, above.to(grad))
        return grad * inside, grad_bound.sum().view_as(bound), None, None


@checked
def quantized_clip(
    x: torch.Tensor, bound: torch.Tensor, levels: int | None = None, shift: float = 0.5
) -> torch.Tensor:
    r"""Clip to :math:`[0, \lambda]`, in ``levels`` equal steps where they are given.

    .. math::
        q(x) = \lambda \, \mathrm{clip}(\lfloor x L / \lambda + s \rfloor / L, 0, 1)

    Gradient: for :math:`x` 1 inside and 0 outside; for :math:`\lambda` 1 above, 0 below and
    :math:`(q(x) - x) / \lambda` inside (0 without levels, where :math:`q(x) = x`).

    Args:
        x: any shape, ``[N, *]``.
        bound: :math:`\lambda > 0`, a tensor of one element.
        levels: :math:`L`, or ``None`` for the plain clip.
        shift: :math:`s`, 0 for the floor and 1/2 for rounding.

    Returns:
        A tensor of the shape of ``x``.

    Raises:
        RuntimeError: ``bound`` has more than one element.

    Source: Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking
    Neural Networks", ICLR 2022 (the clip-floor-shift); the others are special cases.
    """
    return _clipped(x, bound, levels, shift)


def _clipped(
    x: torch.Tensor, bound: torch.Tensor, levels: int | None, shift: float
) -> torch.Tensor:
    clipped: torch.Tensor = _QuantizedClip.apply(x, bound, levels, shift)
    return clipped


@checked
class QuantizedClip(nn.Module):
    r"""Clip to a bound, learned or fixed, in levels or not: the activation of five methods.

    .. math::
        q(x) = \lambda \, \mathrm{clip}(\lfloor x L / \lambda + s \rfloor / L, 0, 1)

    The bound is kept above 0 by :math:`\lambda = \mathrm{softplus}(\rho)` with the parameter
    ``rho``, which :func:`sj_ext.parameter_groups` keeps out of weight decay; see
    :func:`bound_group` for a group of its own.

    Args:
        bound: :math:`\lambda` to start from, in units of the activation.
        levels: :math:`L`, or ``None`` for a clip without levels.
        shift: :math:`s` in [0, 1): 0 floors, 1/2 rounds half up.
        learn_bound: whether the bound is a parameter.

    Shapes:
        ``[N, *]`` to ``[N, *]``.

    Raises:
        TypeError: ``bound`` or ``shift`` is not a number, or ``levels`` no integer.
        ValueError: ``bound`` is not above 0, ``levels`` below 1, or ``shift`` outside [0, 1).

    Source: Deng and Gu, ICLR 2021 (threshold ReLU); Ho and Chang, DAC 2021 (trainable clip); Yan
    et al., AAAI 2021 (clamp and quantise); Bu et al., ICLR 2022 (clip-floor-shift); Hu et al.,
    TPAMI 2023 (Fast-SNN).
    """

    #: read by :func:`sj_ext.parameter_groups`
    no_weight_decay = frozenset({"rho"})

    rho: torch.Tensor

    def __init__(
        self,
        bound: float = 8.0,
        levels: int | None = None,
        shift: float = 0.5,
        learn_bound: bool = True,
    ):
        super().__init__()
        self.levels = None if levels is None else checks.integer("levels", levels, at_least=1)
        self.shift = checks.number("shift", shift, at_least=0, below=1)
        rho = torch.tensor(_inverse_softplus(bound))
        if learn_bound:
            self.rho = nn.Parameter(rho)
        else:
            self.register_buffer("rho", rho)

    @classmethod
    def relu1(cls) -> QuantizedClip:
        """The threshold ReLU of bound 1, fixed (Deng and Gu)."""
        return cls(1.0, learn_bound=False)

    @classmethod
    def relu2(cls) -> QuantizedClip:
        """The threshold ReLU of bound 2, fixed (Deng and Gu)."""
        return cls(2.0, learn_bound=False)

    @classmethod
    def tcl(cls, bound: float = 8.0) -> QuantizedClip:
        """The trainable clip: no levels, a learned bound that starts at ``bound``."""
        return cls(bound)

    @classmethod
    def cq(cls, levels: int) -> QuantizedClip:
        """Clamp and quantise: the floor to ``levels`` levels in [0, 1] (Yan et al.)."""
        return cls(1.0, levels, shift=0.0, learn_bound=False)

    @classmethod
    def qcfs(cls, levels: int, bound: float = 8.0) -> QuantizedClip:
        """Clip-floor-shift: ``levels`` levels, rounded, a learned bound (Bu et al.)."""
        return cls(bound, levels)

    @classmethod
    def bits(cls, bits: int, bound: float = 8.0) -> QuantizedClip:
        """``bits`` bits: ``2 ** bits - 1`` levels, rounded, a learned bound (Fast-SNN)."""
        return cls(bound, 2 ** checks.integer("bits", bits, at_least=1) - 1)

    @property
    def bound(self) -> torch.Tensor:
        r"""The bound :math:`\lambda`, a tensor of no axes; set it with a number above 0."""
        return nn.functional.softplus(self.rho)

    @bound.setter
    def bound(self, value: float) -> None:
        with torch.no_grad():
            self.rho.fill_(_inverse_softplus(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` clipped; see :func:`quantized_clip`."""
        return _clipped(x, self.bound, self.levels, self.shift)

    def extra_repr(self) -> str:
        return (
            f"bound={self.bound.item():.4g}, levels={self.levels}, shift={self.shift}, "
            f"learn_bound={isinstance(self.rho, nn.Parameter)}"
        )


@renamed(net="model")
@checked
def bound_group(model: nn.Module, **options: Any) -> dict[str, Any]:
    """A parameter group named ``"bound"`` with the learned bounds of a network.

    Args:
        model: a network with :class:`QuantizedClip` activations.
        **options: of the group, such as ``lr`` and ``weight_decay``.

    Returns:
        ``{"name": "bound", "params": [...], **options}`` for a ``torch.optim`` optimizer.

    Raises:
        ValueError: the network has no learned bound.
    """
    bounds = [
        module.rho
        for module in model.modules()
        if isinstance(module, QuantizedClip) and isinstance(module.rho, nn.Parameter)
    ]
    if not bounds:
        raise ValueError("model has no QuantizedClip with a learned bound")
    return {"name": "bound", "params": bounds, **options}


def _inverse_softplus(bound: float) -> float:
    bound = checks.number("bound", bound, above=0)
    return bound + math.log(-math.expm1(-bound))
