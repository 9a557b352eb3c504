r"""The turn-on neuron over a whole sequence as one autograd function, on any device of PyTorch.

Forwards it is :mod:`.naive`, over blocks of columns that stay in the cache. Backwards, with
:math:`G[t]` the gradient of :math:`U[t]` by all paths and :math:`H[T] = 0`,

.. math::
    G[t] &= \nabla S[t]\, w[t] + \nabla U[t] + a\, G[t+1], \qquad \nabla X[t] = G[t], \\
    H[t] &= G[t+1] + a\, H[t+1], \qquad
    \nabla a = \sum_t X[t] H[t] + U[0] H[0], \qquad \nabla U[0] = a\, G[1],

where the window :math:`w` is one bit per element and step and the potentials are not needed; see
the README beside this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ...inference import fire, gradient_wanted, tracing
from ..windows import Window
from . import naive

__all__ = ["away_from_zero", "turn_on"]

# Elements that are worked on at a time: on a CPU potentials that stay in the cache, elsewhere
# scratch space that is small beside the memory of a GPU.
_CPU_BLOCK = 2**19
_BLOCK = 2**24


def turn_on(
    x_seq: torch.Tensor,
    v_init: torch.Tensor,
    decay: torch.Tensor,
    *,
    v_threshold: float,
    surrogate_function: Callable[[torch.Tensor], torch.Tensor],
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Spikes, last potential and, if asked for, all potentials of a turn-on neuron.

    With a rectangular window what is kept for the backward pass is one bit per element of
    ``x_seq``, and ``x_seq`` itself where ``decay`` requires a gradient. Any other surrogate keeps
    what it keeps.

    Args:
        x_seq: ``[T, N, *]``, T of 1 or more, of a floating-point dtype.
        v_init: potential before the first step, ``[N, *]``, of dtype ``state_dtype(x_seq.dtype)``.
        decay: broadcasts to ``[N, *]``.
        v_threshold: the threshold.
        surrogate_function: the surrogate, called with ``u - v_threshold``.
        store_v_seq: whether to return all potentials.

    Returns:
        Spikes ``[T, N, *]`` in the dtype of ``x_seq``; the last potential ``[N, *]`` and all
        potentials ``[T, N, *]`` (or None) in the dtype of ``v_init``.
    """
    decay = decay.to(v_init.dtype)
    inputs = x_seq, v_init, decay
    window = Window.of(surrogate_function)
    learns = gradient_wanted(*inputs)
    if window is None:
        if learns:
            v_seq = _LeakySum.apply(*inputs, decay.requires_grad)
        else:
            v_seq = _LeakySum.forward(_NoBackward(), *inputs, False)
        spike = fire(surrogate_function, v_seq - v_threshold).to(x_seq.dtype)
        v_last = v_seq[-1].clone()  # of its own, no view: hosts detach memories in place
        return spike, v_last, v_seq if store_v_seq else None
    if learns:
        return _RectTurnOn.apply(*inputs, v_threshold, window, store_v_seq, decay.requires_grad)
    return _RectTurnOn.forward(_NoBackward(), *inputs, v_threshold, None, store_v_seq, False)


def away_from_zero(decay: torch.Tensor, min_decay: float) -> torch.Tensor:
    """``decay`` moved out to ``min_decay`` in size, keeping its sign.

    Its gradient is the identity everywhere, so that a decay inside the gap can leave it on either
    side.
    """
    if gradient_wanted(decay):
        return _AwayFromZero.apply(decay, min_decay)
    return _AwayFromZero.forward(_NoBackward(), decay, min_decay)


class _NoBackward:
    """The context of a forward pass that no backward pass follows: it keeps nothing."""

    def save_for_backward(self, *tensors):
        pass


class _AwayFromZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, decay, min_decay):
        size = decay.abs().clamp_min(min_decay)
        return torch.where(decay < 0, -size, size)  # ONNX has no copysign

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _RectTurnOn(torch.autograd.Function):
    """Spikes, last potential, potentials; for the backward pass bits, and x if decay learns."""

    @staticmethod
    def forward(ctx, x, v, a, v_threshold, window, store_v_seq, decay_learns):
        ctx.window = window  # None where no gradient is wanted
        ctx.block = _block(x)  # columns that each of packed holds
        kept = (x, v) if decay_learns and window is not None else (None, None)
        if torch.compiler.is_compiling() or tracing():
            *outputs, packed = _traced_forward(x, v, a, v_threshold, window, store_v_seq)
            ctx.save_for_backward(a, *kept, *packed)
            return tuple(outputs)
        # Allocated in their final shapes: hosts detach memories in place, which a view refuses.
        spike, v_last = _empty(x.shape, x), _empty(v.shape, v)
        v_seq = _empty(x.shape, v) if store_v_seq else None
        spikes, last, packed = _columns(spike), v_last.view(-1), []
        potentials = None if v_seq is None else _columns(v_seq)
        inputs, decays, first = _columns(x), _decay_columns(a, v), v.reshape(-1)
        for part in _blocks(inputs, ctx.block):
            fired = spikes[:, part]
            # the potentials stand where the spikes will, if the dtype allows it
            u_seq = fired if fired.dtype == v.dtype else _empty(fired.shape, v)
            _leaky_sum(inputs[:, part], first[part], _part(decays, part), u_seq)
            last[part] = u_seq[-1]
            if potentials is not None:
                potentials[:, part] = u_seq
            above = u_seq.sub_(v_threshold)
            if window is not None:
                packed.append(window.pack(above))
            torch.ge(above, 0, out=fired)
        ctx.save_for_backward(a, *kept, *packed)
        return spike, v_last, v_seq

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spike, grad_v_last, grad_v_seq):
        a, x, v, *packed = ctx.saved_tensors
        own = grad_spike, packed, ctx.window, grad_v_last, grad_v_seq
        return *_backward(*own, a, x, v, ctx.block), None, None, None, None


class _LeakySum(torch.autograd.Function):
    """The potentials alone; for the backward pass x if decay learns, and nothing otherwise."""

    @staticmethod
    def forward(ctx, x, v, a, decay_learns):
        ctx.save_for_backward(a, *((x, v) if decay_learns else (None, None)))
        ctx.dtype = x.dtype
        if torch.compiler.is_compiling() or tracing():
            return naive.turn_on(x, v, a, 0.0, lambda above: above)[1]
        v_seq = _empty(x.shape, v)
        _leaky_sum(x, v, a, v_seq)
        return v_seq

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_v_seq):
        a, x, v = ctx.saved_tensors
        own = None, (), None, torch.zeros_like(grad_v_seq[0]), grad_v_seq
        grad_x, grad_v, grad_a = _backward(*own, a, x, v, _block(grad_v_seq))
        return grad_x.to(ctx.dtype), grad_v, grad_a, None


def _leaky_sum(x, v, a, u_seq):
    """Writes all potentials to u_seq."""
    for x_t, u_t in zip(x.unbind(0), u_seq.unbind(0), strict=True):
        torch.mul(v, a, out=u_t).add_(x_t)
        v = u_t


def _backward(grad_spike, packed, window, grad_v_last, grad_v_seq, a, x, v, block):
    """Gradients of x, v and a; the last one is None without x.

    Args:
        grad_spike, packed, window: gradient of the spikes or None; the windows of each block, and
            what they are of.
        grad_v_last, grad_v_seq: gradients of the potentials; the second may be None.
        a: the decay.
        x, v: input and initial potential if the gradient of ``a`` is wanted, else None.
        block: columns per block.
    """
    if torch.compiler.is_compiling():
        return _traced_backward(grad_spike, packed, window, grad_v_last, grad_v_seq, a, x, v)
    like = grad_v_seq if grad_spike is None else grad_spike
    grad_x, grad_v = _empty(like.shape, like), _empty(grad_v_last.shape, grad_v_last)
    grads, first, last = _columns(grad_x), grad_v.view(-1), grad_v_last.reshape(-1)
    by_spike: Any = None if grad_spike is None else _columns(grad_spike)
    by_v_seq: Any = None if grad_v_seq is None else _columns(grad_v_seq)
    decay = _decay_columns(a, grad_v_last)
    grad_a: Any = None
    if x is not None:
        x, v, grad_a = _columns(x), v.reshape(-1), torch.zeros_like(decay)
    for index, part in enumerate(_blocks(grads, block)):
        a_part, g = _part(decay, part), grads[:, part]
        if g.dtype != a.dtype:
            g = _empty(g.shape, a)
        if by_spike is None:
            g.copy_(by_v_seq[:, part])
        else:
            window.apply(packed[index], by_spike[:, part], out=g)
            if by_v_seq is not None:
                g.add_(by_v_seq[:, part])
        g[-1].add_(last[part])
        rows = g.unbind(0)
        for row, later in zip(rows[-2::-1], rows[:0:-1], strict=True):
            row.addcmul_(later, a_part)
        if g.dtype != grads.dtype:
            grads[:, part] = g
        torch.mul(g[0], a_part, out=first[part])
        if x is None:
            continue
        terms = _decay_terms(g, a_part, x[:, part], v[part])
        if a.numel() == 1:
            grad_a += terms.sum()
        else:
            grad_a[part] = terms
    if x is None:
        return grad_x, grad_v, None
    if a.numel() == 1:
        return grad_x, grad_v, grad_a.view(a.shape)
    return grad_x, grad_v, grad_a.view(grad_v.shape).sum_to_size(a.shape)


def _decay_terms(g, a, x, v):
    """The gradient of the decay from each column: the sum of X[t] H[t], with U[0] for X[0]."""
    h = g[-1].clone()
    terms = torch.zeros_like(h)
    for g_t, x_t in zip(g.unbind(0)[-2::-1], x.unbind(0)[-2::-1], strict=True):
        terms.addcmul_(h, x_t)
        torch.addcmul(g_t, h, a, out=h)
    return terms.addcmul_(h, v)


def _traced_forward(x, v, a, v_threshold, window, store_v_seq):
    """The forward pass for a compiler, which fuses it: nothing is written in place."""
    _, v_seq = naive.turn_on(x, v, a, v_threshold, lambda above: above)
    above = v_seq - v_threshold
    packed = [] if window is None else [window.pack(above)]
    # torch.compile (2.11) loses the gradient of an output that comes out of another operator as
    # well, as it does out of a .to() that has nothing to do: so straight from bool.
    spike = (above >= 0).to(x.dtype)
    return spike, v_seq[-1].clone(), v_seq if store_v_seq else None, packed


def _traced_backward(grad_spike, packed, window, grad_v_last, grad_v_seq, a, x, v):
    """:func:`_backward` for a compiler."""
    own = grad_v_seq
    if grad_spike is not None:
        own = window.apply(packed[0], grad_spike.to(a.dtype))
        own = own if grad_v_seq is None else own + grad_v_seq
    g = own[-1] + grad_v_last
    h = by_a = torch.zeros_like(g)
    rows = [g]
    for t in range(own.shape[0] - 1, 0, -1):
        h = g + a * h
        g = own[t - 1] + a * g
        rows.append(g)
        if x is not None:
            by_a = by_a + x[t - 1] * h
    grad_x = torch.stack(rows[::-1])
    grad_x = grad_x if grad_spike is None else grad_x.to(grad_spike.dtype)
    if x is None:
        return grad_x, a * g, None
    return grad_x, a * g, (by_a + v * (g + a * h)).sum_to_size(a.shape)


def _empty(shape, like):
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _columns(sequence):
    """``[T, *]`` as ``[T, N]``."""
    return sequence.reshape(sequence.shape[0], sequence[0].numel())


def _decay_columns(a, v):
    """One decay as ``[1]``, several as one per column."""
    return a.reshape(1) if a.numel() == 1 else a.expand(v.shape).reshape(-1)


def _part(a, part):
    return a if a.numel() == 1 else a[part]


def _block(x):
    """How many columns of ``[T, *]`` to work on at a time."""
    if torch.compiler.is_compiling():
        return None
    elements = _CPU_BLOCK * torch.get_num_threads() if x.device.type == "cpu" else _BLOCK
    return max(elements // x.shape[0], 1024)


def _blocks(x, block):
    """Slices of the columns of ``x`` ``[T, N]``."""
    columns = x.shape[1]
    return [slice(i, min(i + block, columns)) for i in range(0, columns, block)]
