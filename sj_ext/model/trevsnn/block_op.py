r"""The block of T-RevSNN as one autograd function that keeps bits in place of activations.

.. math::
    d = D_1 * s, \quad s = \Theta(x - v_1), \qquad
    q = W_2 \Theta(W_1 d + b_1 - v_2) + b_2, \qquad
    y = x + D_2 * q

with depthwise convolutions D, pointwise ones W (standardised, see
:mod:`sj_ext.layer.scaled_ws`) and turn-off neurons with a rectangular window.

Both neurons need two bits per element for the backward pass: whether it fired (the input of the
convolution behind it) and whether it was inside the window. Kept are these bits, packed, and q, the
one real-valued input of a convolution that would be dear to compute again; d is recomputed from the
bits of s. The hidden layer, four times as wide as the block, is made, used and dropped a slice of
channels at a time, so it is never there as a whole. Plain autograd keeps seven tensors of the
block's size; this keeps one and a quarter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ...layer.scaled_ws import compute_dtype, standardize, standardize_backward
from ...ops.bits import pack_bits, unpack_bits
from ...ops.windows import Window

__all__ = ["Firing", "spiking_block"]


class Firing(NamedTuple):
    """A turn-off neuron with a rectangular window."""

    v_threshold: float
    window: Window


def spiking_block(
    x: torch.Tensor,
    depthwise: tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    pointwise: tuple[tuple[Any, ...], tuple[Any, ...]],
    neurons: tuple[Firing, Firing],
) -> torch.Tensor:
    """The block's output for its input ``x``.

    Args:
        x: ``[N, C, H, W]``.
        depthwise: weight ``[C, 1, k, k]`` (k odd) and bias of each depthwise convolution, as they
            are multiplied with.
        pointwise: weight before standardisation, gain, bias, and ``standard`` of each pointwise
            convolution.
        neurons: the two turn-off neurons.
    """
    (weight1, gain1, bias1, first), (weight2, gain2, bias2, second) = pointwise
    return _SpikingBlock.apply(
        x,
        *depthwise[0],
        *(weight1, gain1, bias1),
        *(weight2, gain2, bias2),
        *depthwise[1],
        neurons,
        (first, second),
        torch.is_grad_enabled(),
    )


def _depthwise(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _conv_backward(grad, x, weight, groups=1, bias=True, needs_input=True):
    """Gradients of the input, the weight and the bias of a "same" convolution of stride 1."""
    padding = weight.shape[-1] // 2
    sizes = [weight.shape[0]] if bias else None
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        sizes,
        (1, 1),
        (padding, padding),
        (1, 1),
        False,
        (0, 0),
        groups,
        (needs_input, True, bias),
    )


class _SpikingBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x,
        depth1,
        depth_bias1,
        weight1,
        gain1,
        bias1,
        weight2,
        gain2,
        bias2,
        depth2,
        depth_bias2,
        neurons,
        standard,
        keep,
    ):
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            above = x - neurons[0].v_threshold
            if keep:
                spikes, window = pack_bits(above >= 0), neurons[0].window.pack(above)
            d = _depthwise(above.ge_(0).to(dtype), depth1.to(dtype), depth_bias1.to(dtype))
            del above
            hidden_bits = []
            q = None
            point1 = standardize(weight1, gain1, *standard[0]).to(dtype)
            point2 = standardize(weight2, gain2, *standard[1]).to(dtype)
            for part in _slices(weight1):
                above = F.conv2d(d, point1[part], bias1[part].to(dtype))
                above.sub_(neurons[1].v_threshold)
                if keep:
                    hidden_bits += [pack_bits(above >= 0), neurons[1].window.pack(above)]
                bias = bias2.to(dtype) if q is None else None
                share = F.conv2d(above.ge_(0), point2[:, part], bias)
                q = share if q is None else q.add_(share)
                del above, share
            del d
            r = _depthwise(q, depth2.to(dtype), depth_bias2.to(dtype))
            # not in place: torch.compile loses the gradient of an output that was changed in place
            out = x + r
        if keep:
            parameters = depth1, depth_bias1, weight1, gain1, bias1, weight2, gain2, bias2, depth2
            ctx.save_for_backward(spikes, window, q, *parameters, *hidden_bits)
            ctx.neurons, ctx.standard = neurons, standard
            ctx.dtype, ctx.x_dtype = dtype, x.dtype
            ctx.shape = x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        dtype, (first, second), standard = ctx.dtype, ctx.neurons, ctx.standard
        spikes, window, q, *parameters = ctx.saved_tensors[:12]
        depth1, depth_bias1, weight1, gain1, bias1, weight2, gain2, bias2, depth2 = parameters
        hidden_bits = iter(ctx.saved_tensors[12:])
        n, c, h, w = ctx.shape
        with torch.autocast(grad_out.device.type, enabled=False):
            grad_q, grad_depth2, grad_depth_bias2 = _conv_backward(
                grad_out.to(dtype), q, depth2.to(dtype), groups=c
            )
            del q
            d = _depthwise(
                unpack_bits(spikes, ctx.shape).to(dtype), depth1.to(dtype), depth_bias1.to(dtype)
            )
            point1 = standardize(weight1, gain1, *standard[0]).to(dtype)
            point2 = standardize(weight2, gain2, *standard[1]).to(dtype)
            grad_d: Any = None
            grad_bias2: Any = None
            grad_point1, grad_point2 = torch.empty_like(weight1), torch.empty_like(weight2)
            grad_bias1 = torch.empty_like(bias1)
            for part in _slices(weight1):
                fired = unpack_bits(next(hidden_bits), (n, part.stop - part.start, h, w)).to(dtype)
                grad, share, bias_share = _conv_backward(
                    grad_q, fired, point2[:, part], bias=grad_bias2 is None
                )
                del fired
                grad_point2[:, part] = share
                grad_bias2 = bias_share if grad_bias2 is None else grad_bias2
                grad = second.window.apply(next(hidden_bits), grad)
                share_d, share, bias_share = _conv_backward(grad, d, point1[part])
                del grad
                grad_point1[part], grad_bias1[part] = share, bias_share
                grad_d = share_d if grad_d is None else grad_d.add_(share_d)
                del share_d
            del d, grad_q, point1, point2
            of_point1 = standardize_backward(grad_point1, weight1, gain1, *standard[0])
            of_point2 = standardize_backward(grad_point2, weight2, gain2, *standard[1])
            grad_x, grad_depth1, grad_depth_bias1 = _conv_backward(
                grad_d,
                unpack_bits(spikes, ctx.shape).to(dtype),
                depth1.to(dtype),
                groups=c,
                needs_input=ctx.needs_input_grad[0],
            )
            if grad_x is not None:
                grad_x = first.window.apply(window, grad_x)
                grad_x = grad_x.to(grad_out.dtype).add_(grad_out).to(ctx.x_dtype)
        return (
            grad_x,
            grad_depth1.to(depth1.dtype),
            grad_depth_bias1.to(depth_bias1.dtype),
            *of_point1,
            grad_bias1,
            *of_point2,
            grad_bias2.to(bias2.dtype),
            grad_depth2.to(depth2.dtype),
            grad_depth_bias2.to(depth_bias1.dtype),
            *(None,) * 3,
        )


def _slices(weight1):
    """Slices of the hidden channels, each as wide as the block."""
    hidden, width = weight1.shape[:2]
    return [slice(start, min(start + width, hidden)) for start in range(0, hidden, width)]
