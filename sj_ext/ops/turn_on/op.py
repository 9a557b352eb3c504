"""The turn-on neuron's CUDA kernel as an operator of PyTorch, ``sj_ext::turn_on_forward_r2``.

It has a fake implementation and an autograd formula, so that ``torch.compile``, ``torch.export``
and CUDA graphs see one operator forwards and one backwards. On a CPU the operator is the naive
twin: that is for tests and for tracing, and a neuron with ``backend='cupy'`` never runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..windows import Window
from . import naive
from .launch import DTYPES, SEGMENT, Variant, launch

__all__ = ["DTYPES", "turn_on"]


def turn_on(
    x_seq: torch.Tensor,
    v_init: torch.Tensor | None,
    decay: torch.Tensor,
    *,
    v_threshold: float,
    surrogate_function: Callable[[torch.Tensor], torch.Tensor],
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """:func:`sj_ext.ops.turn_on.sequence.turn_on` by the operator.

    Args:
        v_init: None for 0.
        decay: one number, or one per channel as ``[C, 1, ...]`` with an axis for each of those that
            ``x_seq`` has from its channels on.

    Raises:
        TypeError: ``x_seq`` is of a dtype, or ``surrogate_function`` of a kind, that the kernel
            does not take.
    """
    if x_seq.dtype not in DTYPES:
        raise TypeError(f"x_seq must be of one of the dtypes {list(DTYPES)}, got {x_seq.dtype}")
    inner = x_seq.shape[x_seq.dim() - decay.dim() + 1 :].numel() if decay.numel() > 1 else 1
    window, code = _surrogate(surrogate_function)
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x_seq, v_init, decay)
    )
    spike, v_last, _, v_seq = torch.ops.sj_ext.turn_on_forward_r2(
        x_seq,
        v_init,
        decay.float().reshape(-1),
        inner,
        v_threshold,
        *window,
        code,
        needs_grad,
        store_v_seq,
    )
    return spike, v_last, v_seq if store_v_seq else None


def _surrogate(surrogate_function) -> tuple[Window, str]:
    """A rectangular window and no code, or code."""
    window = Window.of(surrogate_function)
    if window is not None:
        return window, ""
    emit = getattr(surrogate_function, "cuda_codes", None)
    if emit is None or not getattr(surrogate_function, "spiking", True):
        raise TypeError(
            "surrogate_function must be Rect or ClosedRect, or emit CUDA code (cuda_codes) and be "
            f"in spiking mode, for backend='cupy'; got {surrogate_function}: use backend='torch'"
        )
    return Window(1.0), emit("window", "above", "float")


def _outputs(x_seq, surrogate, needs_grad, store_v_seq):
    """Empty tensors for spikes, last potential, bits and potentials; size 0 where not wanted."""
    steps, columns = x_seq.shape[0], x_seq.shape[1:].numel()
    like = {"device": x_seq.device, "dtype": torch.float32}
    bits = (0, 0)
    if needs_grad and not surrogate:
        bits = steps, _bits_stride(columns)
    return (
        torch.empty(x_seq.shape, dtype=x_seq.dtype, device=x_seq.device),
        torch.empty(x_seq.shape[1:], **like),
        torch.empty(bits, dtype=torch.uint8, device=x_seq.device),
        torch.empty(x_seq.shape if store_v_seq else (0,), **like),
    )


def _bits_stride(columns):
    """Bytes per step: one per thread of the grid, or of the larger of the two blocks' grids."""
    return (columns + 2047) // 2048 * 256


def _forward_fake(
    x_seq, v_init, decay, inner, v_threshold, alpha, closed, surrogate, needs_grad, store_v_seq
):
    return _outputs(x_seq, surrogate, needs_grad, store_v_seq)


def _forward_cuda(
    x_seq, v_init, decay, inner, v_threshold, alpha, closed, surrogate, needs_grad, store_v_seq
):
    outputs = _outputs(x_seq, surrogate, needs_grad, store_v_seq)
    spike, v_last, bits, v_seq = outputs
    columns = v_last.numel()
    if spike.numel() == 0:
        return outputs
    window = Window(alpha, closed)
    variant = Variant.of(x_seq.dtype, columns, surrogate, closed)
    x_seq, v_init = _aligned(x_seq), _aligned(v_init)
    launch(
        variant,
        "turn_on_forward",
        variant.blocks(columns),
        x_seq.device,
        x_seq,
        v_init,
        decay.contiguous(),
        decay.numel(),
        inner,
        v_threshold,
        window.half_width,
        x_seq.shape[0],
        columns,
        spike,
        v_last,
        bits if bits.numel() else None,
        bits.shape[1],
        v_seq if store_v_seq else None,
    )
    return outputs


def _forward_cpu(
    x_seq, v_init, decay, inner, v_threshold, alpha, closed, surrogate, needs_grad, store_v_seq
):
    spike, v_last, bits, v_seq = _outputs(x_seq, surrogate, needs_grad, store_v_seq)
    if spike.numel():
        v_init = torch.zeros_like(v_last) if v_init is None else v_init
        decay = _per_column(decay, inner, v_last)
        above = naive.turn_on(x_seq, v_init, decay, v_threshold, lambda above: above)[1]
        v_last.copy_(above[-1])
        if store_v_seq:
            v_seq.copy_(above)
        above = above - v_threshold
        spike.copy_(above >= 0)
        bits.zero_()
        window = Window(alpha, closed)
        for row, above_t in zip(bits, above, strict=False):
            packed = window.pack(above_t)
            row[: packed.numel()] = packed
    return spike, v_last, bits, v_seq


def _gradients(grad_spike, decay, decay_learns, v_init_learns):
    shape, device = grad_spike.shape, grad_spike.device
    return (
        torch.empty(shape, dtype=grad_spike.dtype, device=device),
        torch.empty(shape[1:] if v_init_learns else (0,), dtype=torch.float32, device=device),
        torch.empty(decay.shape if decay_learns else (0,), dtype=torch.float32, device=device),
    )


def _backward_fake(
    grad_spike,
    grad_v_last,
    grad_v_seq,
    bits,
    x_seq,
    v_init,
    decay,
    inner,
    v_threshold,
    alpha,
    closed,
    surrogate,
    decay_learns,
    v_init_learns,
):
    return _gradients(grad_spike, decay, decay_learns, v_init_learns)


def _backward_cuda(
    grad_spike,
    grad_v_last,
    grad_v_seq,
    bits,
    x_seq,
    v_init,
    decay,
    inner,
    v_threshold,
    alpha,
    closed,
    surrogate,
    decay_learns,
    v_init_learns,
):
    gradients = _gradients(grad_spike, decay, decay_learns, v_init_learns)
    grad_x, grad_v, grad_decay = gradients
    steps, columns, channels = grad_x.shape[0], grad_x.shape[1:].numel(), decay.numel()
    if grad_x.numel() == 0:
        grad_v.zero_()
        grad_decay.zero_()
        return gradients
    variant = Variant.of(grad_spike.dtype, columns, surrogate)
    blocks = variant.blocks(columns)
    scratch = {"dtype": torch.float32, "device": grad_x.device}
    partial = blocks if channels == 1 else columns
    terms: Any = torch.empty(partial, **scratch) if decay_learns else None
    sparse = ((steps - 1) // SEGMENT, columns)
    checkpoints = torch.empty(sparse, **scratch) if surrogate else None
    # named, so that copies that alignment needs live until the kernel has been launched
    tensors = [_aligned(t) for t in (grad_spike, x_seq, v_init, grad_v_last, grad_v_seq)]
    grad_spike, x_seq, v_init, grad_v_last, grad_v_seq = tensors
    outputs = grad_x, grad_v if v_init_learns else None, terms, checkpoints
    launch(
        variant,
        "turn_on_backward",
        blocks,
        grad_x.device,
        grad_spike,
        bits if bits.numel() else None,
        bits.shape[1],
        x_seq,
        v_init,
        decay.contiguous(),
        channels,
        inner,
        v_threshold,
        alpha,
        steps,
        columns,
        grad_v_last,
        grad_v_seq,
        *outputs,
    )
    if decay_learns and channels == 1:
        torch.sum(terms, 0, keepdim=True, out=grad_decay)
    elif decay_learns:
        torch.sum(terms.view(-1, channels, inner), (0, 2), out=grad_decay)
    return gradients


def _backward_cpu(
    grad_spike,
    grad_v_last,
    grad_v_seq,
    bits,
    x_seq,
    v_init,
    decay,
    inner,
    v_threshold,
    alpha,
    closed,
    surrogate,
    decay_learns,
    v_init_learns,
):
    if surrogate:
        raise RuntimeError("the operator computes surrogates that are CUDA code on CUDA only")
    grad_x, grad_v, grad_decay = _gradients(grad_spike, decay, decay_learns, v_init_learns)
    if grad_x.numel() == 0:
        grad_v.zero_()
        grad_decay.zero_()
        return grad_x, grad_v, grad_decay
    zeros = torch.zeros(grad_x.shape[1:])
    columns = zeros.numel()
    a = _per_column(decay, inner, zeros)
    carry, h, by_decay = zeros if grad_v_last is None else grad_v_last, zeros, zeros
    for t in reversed(range(len(grad_x))):
        packed = bits[t, : (columns + 7) // 8]
        g = Window(alpha, closed).apply(packed, grad_spike[t].float()) + carry
        g = g if grad_v_seq is None else g + grad_v_seq[t]
        grad_x[t], carry = g, a * g
        if decay_learns:
            by_decay, h = by_decay + x_seq[t] * h, g + a * h
    if v_init_learns:
        grad_v.copy_(carry)
    if decay_learns:
        by_decay = by_decay if v_init is None else by_decay + v_init * h
        channels = decay.numel()
        grad_decay.copy_(
            by_decay.sum() if channels == 1 else by_decay.view(-1, channels, inner).sum((0, 2))
        )
    return grad_x, grad_v, grad_decay


def _per_column(decay, inner, v):
    """The decays ``[C]`` as a tensor that broadcasts to ``v`` ``[N, C, *]``."""
    if decay.numel() == 1:
        return decay
    repeats = v.numel() // (decay.numel() * inner)
    return decay.view(1, -1, 1).expand(repeats, -1, inner).reshape(v.shape)


def _aligned(tensor):
    """A contiguous tensor that starts on a 16-byte boundary, as those of the allocator do."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _setup_context(ctx, inputs, output):
    x_seq, v_init, decay, inner, v_threshold, alpha, closed, surrogate, _, store_v_seq = inputs
    learns, v_init_learns = ctx.needs_input_grad[2], ctx.needs_input_grad[1]
    keeps_x = learns or surrogate != ""
    ctx.save_for_backward(decay, output[2], x_seq if keeps_x else None, v_init if keeps_x else None)
    ctx.constants = inner, v_threshold, alpha, closed, surrogate, learns, v_init_learns
    ctx.store_v_seq = store_v_seq
    ctx.like = x_seq.shape, x_seq.dtype, x_seq.device
    ctx.set_materialize_grads(False)  # nobody reads zeros for the last potential then


def _autograd(ctx, grad_spike, grad_v_last, grad_bits, grad_v_seq):
    decay, bits, x_seq, v_init = ctx.saved_tensors
    *_, learns, v_init_learns = ctx.constants
    if grad_spike is None:
        shape, dtype, device = ctx.like
        grad_spike = torch.zeros(shape, dtype=dtype, device=device)
    grad_x, grad_v, grad_decay = torch.ops.sj_ext.turn_on_backward_r2(
        grad_spike,
        grad_v_last,
        grad_v_seq if ctx.store_v_seq else None,
        bits,
        x_seq,
        v_init,
        decay,
        *ctx.constants,
    )
    grad_v = grad_v if v_init_learns else None
    return (grad_x, grad_v, grad_decay if learns else None, *[None] * 7)


def _no_double_backward(ctx, *gradients):
    raise RuntimeError(
        "the turn-on neuron's kernel has no double backward: use backend='torch' and plain "
        "operators where second derivatives are needed"
    )


def _register():
    """Make the operators known to PyTorch.

    The revision is part of the names because PyTorch keeps compiled graphs on disk and knows an
    operator by its name: raise it whenever the signatures or the autograd formula change.
    """
    torch.library.define(
        "sj_ext::turn_on_forward_r2",
        "(Tensor x_seq, Tensor? v_init, Tensor decay, int inner, float v_threshold, float alpha, "
        "bool closed, str surrogate, bool needs_grad, bool store_v_seq) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    )
    torch.library.define(
        "sj_ext::turn_on_backward_r2",
        "(Tensor grad_spike, Tensor? grad_v_last, Tensor? grad_v_seq, Tensor bits, Tensor? x_seq, "
        "Tensor? v_init, Tensor decay, int inner, float v_threshold, float alpha, bool closed, "
        "str surrogate, bool decay_learns, bool v_init_learns) -> (Tensor, Tensor, Tensor)",
    )
    torch.library.register_fake("sj_ext::turn_on_forward_r2", _forward_fake)
    torch.library.register_fake("sj_ext::turn_on_backward_r2", _backward_fake)
    torch.library.impl("sj_ext::turn_on_forward_r2", "CUDA", _forward_cuda)
    torch.library.impl("sj_ext::turn_on_forward_r2", "CPU", _forward_cpu)
    torch.library.impl("sj_ext::turn_on_backward_r2", "CUDA", _backward_cuda)
    torch.library.impl("sj_ext::turn_on_backward_r2", "CPU", _backward_cpu)
    torch.library.register_autograd(
        "sj_ext::turn_on_forward_r2", _autograd, setup_context=_setup_context
    )
    torch.library.register_autograd("sj_ext::turn_on_backward_r2", _no_double_backward)


# PyTorch keeps an operator for the life of the process, while a notebook may drop this module and
# import it again: the operator that is there then does the same.
if not hasattr(torch.ops.sj_ext, "turn_on_forward_r2"):
    _register()
