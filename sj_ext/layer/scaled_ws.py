r"""Convolution with scaled weight standardisation, in place of batch normalisation.

.. math::
    \hat w_c = g_c \frac{w_c - \mathrm{mean}(w_c)}{\sqrt{n \, \mathrm{var}(w_c) + \epsilon}}

for each output channel c, with the fan-in :math:`n` and a learnable gain :math:`g_c`. A layer whose
input has unit variance keeps it, without statistics of the data. Programs that add
:math:`\epsilon` to the variance before they scale it (timm) add :math:`n \epsilon` here, which
matters as soon as weights are small: at a standard deviation of 0.02 and a fan-in of 400,
:math:`n\,\mathrm{var}` is 0.16.

A pruned weight is zero, and less its mean it would be zero no more. With ``skip_zeros``, weights
that are exactly 0 stay 0, and mean, variance and :math:`n` are over the others: the layer computes
what a layer without them would. Their gradient is what it would be if they were of the others, so
that they can come back; in a channel of which fewer than two weights are left it is 0.

The standardised weight is as large as the weight and is made anew in each call. Autograd would keep
it (and the centred weight) for each call until the backward pass; here each call keeps its input
only, beside the parameters that exist anyway, and the backward pass standardises again.

Source: Brock, De, Smith, "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021 (arXiv 2101.08692).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .. import checks, host
from ..arguments import checked
from ..inference import gradient_wanted

__all__ = ["ScaledWSConv2d", "standardize", "standardize_backward"]


def _centred(
    weight: torch.Tensor, eps: float, skip_zeros: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight less its mean, and 1 / sqrt(fan_in var + eps), over each output channel."""
    dims = tuple(range(1, weight.dim()))
    if skip_zeros:
        kept = weight != 0
        number = kept.sum(dims, keepdim=True)
        mean = weight.sum(dims, keepdim=True) / number.clamp(min=1)
        centred = torch.where(kept, weight - mean, weight)  # the others' gradients go through
        scale = (centred.square().sum(dims, keepdim=True) + eps).rsqrt()
        return centred, scale * (number > 1)  # one alone has no variance to divide by
    centred = weight - weight.mean(dims, keepdim=True)
    # the sum of squares about the mean is fan_in times the variance
    return centred, (centred.square().sum(dims, keepdim=True) + eps).rsqrt()


def standardize(
    weight: torch.Tensor, gain: torch.Tensor, eps: float, skip_zeros: bool = False
) -> torch.Tensor:
    """The standardised weight.

    Args:
        weight: ``[out, in, *kernel]``.
        gain: ``[out, 1, ...]``, broadcast to the weight.
        eps: added to the scaled variance.
        skip_zeros: weights that are exactly 0 stay 0 and do not count.
    """
    centred, scale = _centred(weight, eps, skip_zeros)
    return centred.mul_(scale * gain) if not torch.is_grad_enabled() else centred * (scale * gain)


def standardize_backward(
    grad: torch.Tensor,
    weight: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    skip_zeros: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Gradients of the weight and of the gain from the gradient of the standardised weight.

    With :math:`z = (w - m) k`, :math:`k = (n \mathrm{var} + \epsilon)^{-1/2}` and :math:`h = g`
    times the incoming gradient: :math:`\partial w = k (h - \mathrm{mean}(h) - z \sum h z)`,
    because the scaled variance is the sum of squares of :math:`w - m`. With ``skip_zeros`` means
    are over the weights that are not 0, and :math:`z` of the others is 0.
    """
    dims = tuple(range(1, weight.dim()))
    z, scale = _centred(weight, eps, skip_zeros)
    z = z * scale
    along = (grad * z).sum(dims, keepdim=True)
    if skip_zeros:
        kept = weight != 0
        mean = (grad * kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True).clamp(min=1)
    else:
        mean = grad.mean(dims, keepdim=True)
    grad_weight = (grad - mean - z * along) * (scale * gain)
    return grad_weight, along


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which a convolution of ``x`` runs: autocast's where it is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor | None,
    standard: tuple[float, bool],
    *geometry: Any,
) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):  # what is standardised stays as it is
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            effective = standardize(weight, gain, *standard).to(dtype)
            bias = None if bias is None else bias.to(dtype)
            return F.conv2d(x.to(dtype), effective, bias, *geometry)
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, standardize(weight, gain, *standard).to(x.dtype), bias, *geometry)


class _ScaledWSConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        gain: torch.Tensor,
        bias: torch.Tensor | None,
        standard: tuple[float, bool],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, gain)
        ctx.standard = standard
        ctx.has_bias = bias is not None
        ctx.geometry = stride, padding, dilation, groups
        ctx.dtype = compute_dtype(x)
        return _convolve(x, weight, gain, bias, standard, *ctx.geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, gain = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        need_x, need_weight, need_gain, need_bias = ctx.needs_input_grad[:4]
        with torch.autocast(x.device.type, enabled=False):
            effective = standardize(weight, gain, *ctx.standard).to(ctx.dtype)
            grad_x, grad_effective, grad_bias = torch.ops.aten.convolution_backward(
                grad_out.to(ctx.dtype),
                x.to(ctx.dtype),
                effective,
                [weight.shape[0]] if ctx.has_bias else None,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                groups,
                (need_x, need_weight or need_gain, need_bias),
            )
            del effective
            grad_weight = grad_gain = None
            if grad_effective is not None:
                grad_weight, grad_gain = standardize_backward(
                    grad_effective.to(weight.dtype), weight, gain, *ctx.standard
                )
        return (
            None if grad_x is None else grad_x.to(x.dtype),
            grad_weight if need_weight else None,
            grad_gain if need_gain else None,
            None if grad_bias is None else grad_bias.to(weight.dtype),
            *(None,) * 5,
        )


@checked
class ScaledWSConv2d(host.layer.Conv2d):
    r"""2D convolution whose weight is standardised and scaled in each call.

    .. math::
        w' = g \frac{w - \mathrm{mean}(w)}{\sqrt{n\, \mathrm{var}(w) + \epsilon}}
        \quad\text{or}\quad
        w' = g \frac{w - \mathrm{mean}(w)}{\sqrt{n\, (\mathrm{var}(w) + \epsilon)}}

    with the fan-in n, mean and variance over each output channel and g the gain. What a call keeps
    in memory stands at the top of this module. Gradients of first order only.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as PyTorch's ``nn.Conv2d``.
        dilation, groups, bias, padding_mode: as PyTorch's ``nn.Conv2d``.
        step_mode: ``'s'`` or ``'m'``.
        gain_init: first value of the gain, one per output channel.
        eps: keeps the root away from 0.
        eps_in: what ``eps`` is added to: ``'sum'``, the fan-in times the variance (the first
            equation), or ``'variance'``, the variance alone (the second, as timm and the networks
            trained with it have it).

    Shapes:
        ``[N, C, H, W]`` in step mode ``'s'``, ``[T, N, C, H, W]`` in step mode ``'m'``.

    Attributes:
        weight: the weight before standardisation.
        gain: ``[out_channels, 1, 1, 1]``.
        eps: what is added to the fan-in times the variance: the argument of that name, times the
            fan-in with ``eps_in='variance'``.
        skip_zeros: weights that are exactly 0 stay 0 and do not count in mean and variance. False;
            a pruner sets it, and ``load_state_dict`` of a weight that has zeros.

    Raises:
        ValueError: one weight per output channel (its variance is 0), ``eps`` not above 0, or an
            unknown ``eps_in``.

    Source: arXiv 2101.08692.
    """

    #: see :func:`sj_ext.parameter_groups`
    no_weight_decay = frozenset({"gain"})
    eps_in = "sum"
    skip_zeros = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        step_mode: str = "s",
        *,
        gain_init: float = 1.0,
        eps: float = 1e-6,
        eps_in: str = "sum",
    ):
        checks.sizes(in_channels=in_channels, out_channels=out_channels, groups=groups)
        pair = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        checks.shape("kernel_size", pair, length=2)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            step_mode,
        )
        if self.weight[0].numel() < 2:
            raise ValueError(
                "in_channels / groups * kernel_size must give at least 2 weights per output channel"
                f" (one alone has no variance to divide by), got in_channels={in_channels}, "
                f"groups={groups}, kernel_size={kernel_size}"
            )
        self.gain = nn.Parameter(torch.full((out_channels, 1, 1, 1), float(gain_init)))
        self.set_eps(eps, eps_in)

    def set_eps(self, eps: float, eps_in: str = "sum") -> None:
        """Change ``eps`` and what it is added to; the arguments of the constructor."""
        eps = checks.number("eps", eps, above=0)
        self.eps_in = checks.choice("eps_in", eps_in, ("sum", "variance"))
        self.eps = eps * self.weight[0].numel() if eps_in == "variance" else eps

    @property
    def standard(self) -> tuple[float, bool]:
        """What :func:`standardize` needs beside weight and gain: ``eps`` and ``skip_zeros``."""
        return self.eps, self.skip_zeros

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        weight = state_dict.get(f"{prefix}weight")
        if not self.skip_zeros and isinstance(weight, torch.Tensor) and not weight.is_meta:
            zeros: Any = (weight.detach() == 0).sum()  # of a sharded weight, on all ranks
            self.skip_zeros = bool(zeros.full_tensor() if hasattr(zeros, "placements") else zeros)

    def effective_weight(self) -> torch.Tensor:
        """The standardised weight that the convolution multiplies with."""
        return standardize(self.weight, self.gain, *self.standard)

    def _conv_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        elif isinstance(padding, str):  # 'same' may be uneven, which convolution_backward has not
            x = F.pad(x, self._reversed_padding_repeated_twice)
            padding = 0
        padding = (padding, padding) if isinstance(padding, int) else padding
        inputs = x, weight, self.gain, bias
        run = _ScaledWSConv.apply if gradient_wanted(*inputs) else _convolve
        return run(*inputs, self.standard, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        zeros = ", skip_zeros=True" if self.skip_zeros else ""
        return super().extra_repr() + f", eps={self.eps:.4g}, eps_in={self.eps_in!r}{zeros}"
