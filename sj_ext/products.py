"""Products of activations, such as an attention's, seen where PyTorch multiplies matrices.

No layer has the operands of such a product, so that hooks on layers miss it: queries meet keys in
the code of a module, in ``nn.MultiheadAttention`` or in ``scaled_dot_product_attention``. What
counts operations counts them here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .layer.attention import MatrixProduct

__all__ = [
    "BATCHED",
    "SINGLE",
    "Operations",
    "Running",
    "attention_products",
    "of_spikes",
    "operations",
    "watching_products",
]

aten = torch.ops.aten

#: a matrix times a vector or a matrix, the operands last
SINGLE = frozenset((aten.mm, aten.addmm, aten.mv, aten.addmv))
BATCHED = frozenset((aten.bmm, aten.baddbmm))
#: queries, keys and values first
FUSED = frozenset(
    getattr(aten, name)
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(aten, name)
)
#: layers, which multiply by weights of their own
LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.RNNBase,
)  # fmt: skip


class Operations(NamedTuple):
    """What a product does; figures may be tensors, which nobody has waited for."""

    #: multiply-accumulates of a dense computation
    dense: int
    #: pairs of two elements that are not 0
    pairs: torch.Tensor
    #: whether one of the two matrices is spikes, so that the pairs are accumulations
    spikes: torch.Tensor


def of_spikes(x: torch.Tensor) -> torch.Tensor:
    """Whether nothing is to be multiplied: all is 0, or 1, or a signed spike's -1."""
    return ((x == 0) | (x.abs() == 1)).all()


def operations(a: torch.Tensor, b: torch.Tensor) -> Operations:
    r"""What :math:`A B` does, for ``[*, n, m]`` and ``[*, m, p]``.

    :math:`\sum_{i,k} [A_{ij} \ne 0] [B_{jk} \ne 0]` is a product of two sums for each j, so that
    counting costs less than multiplying.
    """
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]).numel()
    dense = batch * a.shape[-2] * a.shape[-1] * b.shape[-1]
    down, across = (a != 0).double().sum(-2), (b != 0).double().sum(-1)
    share = batch / max(1, torch.broadcast_shapes(down.shape[:-1], across.shape[:-1]).numel())
    return Operations(dense, (down * across).sum() * share, of_spikes(a) | of_spikes(b))


def attention_products(module: nn.MultiheadAttention, args: Any, kwargs: Any) -> int:
    """Multiply-accumulates of the two products of an attention, from what it is given.

    :math:`2 N L S E` for L queries and S keys in each of N samples, with E channels in all heads.
    """
    query, key = (
        args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("query", "key"))
    )
    own = int(module.bias_k is not None) + int(module.add_zero_attn)
    keys = key.shape[1 if module.batch_first and key.dim() == 3 else 0] + own
    return 2 * query.numel() * keys


class Running:
    """Knows which module of a network is running, and so what a product is.

    Args:
        model: the network.
        weights: parameters that count elsewhere; a product with one is none of activations.
    """

    def __init__(self, model: nn.Module, weights: Iterable[torch.Tensor] = ()):
        self._model = model
        self._stack: list[tuple[str, nn.Module]] = [("", model)]
        self._weights = {_memory(weight) for weight in weights}
        self._parameters = {_memory(parameter) for parameter in model.parameters()}

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Within it, modules are followed as they run."""
        fast = torch.backends.mha.get_fastpath_enabled()
        with contextlib.ExitStack() as handles:
            # which is one operation to the dispatcher
            torch.backends.mha.set_fastpath_enabled(False)
            handles.callback(torch.backends.mha.set_fastpath_enabled, fast)
            for name, module in self._model.named_modules():
                enter = partial(self._enter, name)
                handles.callback(module.register_forward_pre_hook(enter).remove)
                leave = module.register_forward_hook(self._leave, always_call=True)
                handles.callback(leave.remove)
            yield

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self._stack.append((name, module))

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def product(self, func: Any, operands: Iterable[torch.Tensor]) -> str | None:
        """The module that multiplies two activations, or None where it does not.

        A parameter outside of layers counts where it goes through a ``MatrixProduct``.
        """
        name, module = self._stack[-1]
        if isinstance(module, LAYERS):
            return None
        if isinstance(module, nn.MultiheadAttention) and func in SINGLE:
            return None  # its maps
        held = self._weights if isinstance(module, MatrixProduct) else self._parameters
        return None if any(_memory(x) in held for x in operands) else name


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata if type(tensor) in (torch.Tensor, nn.Parameter) else 0


class _Products(TorchDispatchMode):
    def __init__(self, running: Running, look: Callable[[str, torch.Tensor, torch.Tensor], object]):
        super().__init__()
        self._running, self._look = running, look

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in SINGLE or packet in BATCHED:
            a, b = args[-2:]
            name = self._running.product(packet, (a, b))
            if name is not None:
                self._look(name, a, b if b.dim() > 1 else b[:, None])
        elif packet in FUSED:
            q, k, v = args[:3]
            name = self._running.product(packet, (q, k, v))
            if name is not None:
                self._look(name, q, k.mT)
                weights = q.new_full((), 0.5).expand(*q.shape[:-1], k.shape[-2])  # real, none is 0
                self._look(name, weights, v)
        return out


@contextlib.contextmanager
def watching_products(
    model: nn.Module,
    look: Callable[[str, torch.Tensor, torch.Tensor], object],
    weights: Iterable[torch.Tensor] = (),
) -> Iterator[None]:
    """Within the context, ``look(name, a, b)`` is called when two activations are multiplied.

    Args:
        model: the network.
        look: gets the name of the module that multiplies, and the two matrices, ``[*, n, m]`` and
            ``[*, m, p]``.
        weights: parameters that count elsewhere.
    """
    running = Running(model, weights)
    with running.following(), _Products(running, look):
        yield
