"""Which channels of which parameters belong together, read off a forward pass.

Every index of a parameter's axis is an atom. A forward pass runs once, and beside the memory of
every tensor runs a shadow of it that holds atoms: a convolution writes those of its output rows,
and views, copies and concatenations move them as they move the data. Where two atoms meet, they
have to be cut together: in a sum, in a normalisation, between the outputs of a layer and the inputs
of the next. What mixes channels, such as a mean over them or a view that splits them into heads,
and what leaves the network, holds its atoms in place.

The shadow is a property of memory and not of Python objects or of autograd, so that spikes,
memories written in place, and cells with an autograd of their own are seen as they run.

One file, for it is one walk, with a rule for each kind of operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..layer import ScaledWSConv2d
from ..observe import at_rest
from ..products import BATCHED, SINGLE, Running
from .atoms import Graph, Product
from .resources.operations import run

__all__ = ["trace"]

aten = torch.ops.aten
#: how modules call their number of heads
HEADS = ("num_heads", "heads")
#: the axes of a parameter that get atoms: by plane of the shadow
PLANES = 2

MOVING = {
    aten.cat, aten.stack, aten.clone, aten.repeat, aten.index, aten.index_select, aten.flip,
    aten.roll, aten.gather, aten.constant_pad_nd, aten.repeat_interleave, aten.masked_select,
    aten.im2col, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.tile,
}  # fmt: skip
VIEWS = {aten.view, aten._unsafe_view, aten.reshape, aten.unflatten, aten._reshape_alias}
REDUCING = {
    aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.var_mean, aten.std, aten.std_mean,
    aten.prod, aten.any, aten.all, aten.linalg_vector_norm, aten.logsumexp, aten.max, aten.min,
}  # fmt: skip
POOLING = {
    aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.avg_pool3d,
    aten.max_pool3d_with_indices, aten._adaptive_avg_pool3d, aten.adaptive_max_pool2d,
    aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.avg_pool1d, aten.max_pool2d,
}  # fmt: skip
NORMALISING = {
    aten.native_batch_norm, aten._native_batch_norm_legit, aten.cudnn_batch_norm,
    aten._native_batch_norm_legit_no_training, aten._batch_norm_no_update, aten.batch_norm,
}  # fmt: skip
NO_DATA = {
    aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros,
    aten.new_empty, aten.new_full, aten.new_ones, aten.rand_like, aten.randn_like,
    aten._local_scalar_dense, aten.is_nonzero, aten.sym_size, aten.empty, aten.new_empty_strided,
}  # fmt: skip


def trace(model: nn.Module, example_input: Any) -> Graph:
    """The graph of one forward pass from reset, in evaluation mode; the model is left as it was.

    Args:
        model: the network.
        example_input: one batch, a tuple of several inputs, or a mapping of named ones.
    """
    shadow = _Shadow(Running(model))
    for module in model.modules():
        layer = hasattr(module, "in_channels") or hasattr(module, "in_features")
        for parameter in (
            *module.parameters(recurse=False),
            *(b for b in module.buffers(recurse=False) if b is not None),
        ):
            axes = range(min(2, parameter.dim())) if layer else range(parameter.dim())
            shadow.own(parameter, [axis for axis in axes if parameter.shape[axis] > 1][:PLANES])
    with (
        at_rest(model),
        _unstandardised(model),
        shadow.modules.following(),
        shadow.inside(model),
        shadow,
    ):
        out = run(model, example_input)
    for leaf in tree_leaves(out):
        if isinstance(leaf, torch.Tensor):
            shadow.pin(leaf)
    return shadow.graph


@contextlib.contextmanager
def _unstandardised(model: nn.Module) -> Iterator[None]:
    """Within it, standardised weights are multiplied by their gains only.

    Their statistics are over the channels that they read, which would hold these; but zeros are
    left out of them.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, ScaledWSConv2d)]
    try:
        for layer in layers:
            vars(layer)["_conv_forward"] = partial(_scaled, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("_conv_forward", None)


def _scaled(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
    return nn.Conv2d._conv_forward(layer, x, weight * layer.gain, bias)


class _Shadow(TorchDispatchMode):
    """Runs the atoms beside the data."""

    def __init__(self, modules: Running) -> None:
        super().__init__()
        self.modules = modules
        self.graph = Graph()
        self.atoms = self.graph.atoms
        #: modules with a number of heads whose forward is running, innermost last
        self._running: list[tuple[nn.Module, str]] = []
        self._memory: dict[int, list[torch.Tensor]] = {}
        self._alive: list[Any] = []

    @contextlib.contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Within it, it is known which module with a number of heads is running."""
        with contextlib.ExitStack() as handles:
            for module in model.modules():
                for name in HEADS:
                    if type(vars(module).get(name)) is int:
                        enter, leave = self._enter((module, name)), self._leave
                        handles.callback(module.register_forward_pre_hook(enter).remove)
                        handles.callback(module.register_forward_hook(leave).remove)
            yield

    def _enter(self, entry: tuple[nn.Module, str]) -> Any:
        return lambda *_: self._running.append(entry)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    # ---- the shadow of a tensor ---------------------------------------------------------------

    def own(self, parameter: torch.Tensor, axes: Iterable[int]) -> None:
        """Give the axes of a parameter their atoms, once."""
        if id(parameter) in self.graph.rows:
            return
        rows = self.graph.rows[id(parameter)] = {}
        for plane, axis in enumerate(axes):
            rows[axis] = self.atoms.new(parameter.shape[axis], id(parameter), axis)
            shape = [-1 if d == axis else 1 for d in range(parameter.dim())]
            self.write(parameter, plane, rows[axis].view(shape))

    def read(self, tensor: torch.Tensor, plane: int) -> torch.Tensor:
        """The atoms in the shape of a tensor."""
        base = self._base(tensor)
        if base is None:
            return torch.zeros((), dtype=torch.int32).expand(tensor.shape)
        return base[plane].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def write(self, tensor: torch.Tensor, plane: int, atoms: torch.Tensor) -> None:
        """Atoms for a tensor, and so for all that shares its memory."""
        if self._base(tensor) is None:
            if not atoms.any():
                return
            storage = tensor.untyped_storage()
            size = storage.nbytes() // tensor.element_size()
            planes = [torch.zeros(size, dtype=torch.int32) for _ in range(PLANES)]
            self._memory[storage.data_ptr()] = planes
            self._alive.append(storage)  # its place is not given to another
        self.read(tensor, plane).copy_(atoms)

    def _base(self, tensor: torch.Tensor) -> list[torch.Tensor] | None:
        return self._memory.get(tensor.untyped_storage().data_ptr())

    def labelled(self, tensor: Any) -> bool:
        return (
            isinstance(tensor, torch.Tensor)
            and tensor.numel() > 0
            and tensor.layout == torch.strided
            and self._base(tensor) is not None
        )

    def pin(self, tensor: Any) -> None:
        """Whatever the tensor holds stays."""
        if self.labelled(tensor):
            for plane in range(PLANES):
                self.atoms.pin(self.read(tensor, plane))

    # ---- one operation ------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        known = [x for x in inputs if self.labelled(x)]
        before = [[self.read(x, p).clone() for p in range(PLANES)] for x in inputs]
        out = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self._alive.extend(o.untyped_storage() for o in outs)
        if known and outs:
            self._follow(func, args, kwargs, list(zip(inputs, before, strict=True)), outs)
        return out

    def _follow(self, func: Any, args: Any, kwargs: Any, inputs: Any, outs: Any) -> None:
        packet = func.overloadpacket
        if packet in NO_DATA:
            return
        if packet in VIEWS:
            self._view(args[0], outs[0])
        elif packet in (aten._to_copy, aten.copy_, aten.detach, aten.alias, aten.lift_fresh):
            source = args[1] if packet is aten.copy_ else args[0]
            self._copy(source, outs[0])
        elif func.is_view:
            return  # the memory is shared, and so is its shadow
        elif packet in MOVING:
            self._move(func, args, kwargs, outs)
        elif packet is aten.convolution:
            self._convolve(args, outs[0])
        elif packet in SINGLE or packet in BATCHED:
            self._multiply(packet, args, outs[0])
        elif packet in NORMALISING:
            self._normalise(args, outs[0])
        elif packet in POOLING:
            self._pool(args[0], outs)
        elif packet in REDUCING:
            self._reduce(args[0], outs)
        elif packet in (aten._softmax, aten._log_softmax, aten.cumsum):
            self._along(args[0], args[1], outs[0])
        elif torch.Tag.pointwise in func.tags or self._alike(inputs, outs):
            self._pointwise(inputs, outs)
        else:
            for tensor, _ in inputs:
                self.pin(tensor)

    def _alike(self, inputs: Any, outs: Any) -> bool:
        """An operator of our own or the host's whose tensors all have the shape of the state."""
        shape = max((x.shape for x, _ in inputs), key=len)
        fits = [_broadcasts(x.shape, shape) for x, _ in inputs]
        return all(fits) and all(_broadcasts(out.shape, shape) for out in outs)

    def _pointwise(self, inputs: Any, outs: Any) -> None:
        for out in outs:
            for plane in range(PLANES):
                self._meet(
                    [planes[plane] for x, planes in inputs if _broadcasts(x.shape, out.shape)],
                    out,
                    plane,
                )

    def _meet(self, sources: list[torch.Tensor], out: torch.Tensor, plane: int) -> None:
        """Atoms of several tensors at the same places; where two differ, a new one for the sum."""
        merged = torch.zeros((), dtype=torch.int32).expand(out.shape)
        for atoms in sources:
            atoms = atoms.expand(out.shape)
            differ = (merged > 0) & (atoms > 0) & (merged != atoms)
            if differ.any():
                merged = self._sum(merged, atoms)
            else:
                merged = torch.where(merged > 0, merged, atoms)
        self.write(out, plane, merged)

    def _sum(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        self.atoms.join(one, other)
        pairs = torch.stack((one, other)).flatten(1)
        unique, inverse = pairs.unique(dim=1, return_inverse=True)
        fresh = self.atoms.new(unique.shape[1])
        single = (unique == 0).any(0)
        fresh = torch.where(single, unique.amax(0), fresh).to(torch.int32)
        self.atoms.join(fresh, unique[0])
        self.atoms.join(fresh, unique[1])
        return fresh[inverse].view(one.shape)

    def _view(self, source: torch.Tensor, out: torch.Tensor) -> None:
        """A view that splits channels into several axes holds them, unless these are heads."""
        for plane in range(PLANES):
            before = self.read(source, plane)
            atoms = before.reshape(out.shape)
            if _base_differs(source, out):
                self.write(out, plane, atoms)
            if len(_axes(atoms)) > max(1, len(_axes(before))) and not self._split(out, plane):
                self.atoms.pin(atoms)

    def _split(self, out: torch.Tensor, plane: int) -> bool:
        """Channels that the running module has split into its heads: each head is one from now."""
        atoms = self.read(out, plane)
        axes = _axes(atoms)
        for module, name in reversed(self._running):
            number = getattr(module, name)
            found = [axis for axis in axes[:-1] if out.shape[axis] == number]
            if len(found) != 1 or axes.index(found[0]) != len(axes) - 2:
                continue
            rows = atoms.movedim((*axes,), tuple(range(len(axes))))
            first: Any = (..., *[0] * (out.dim() - len(axes)))
            rows = rows[first].flatten(0, -2)
            for row in rows:
                self.atoms.join(row, row[:1])
            one = atoms.narrow(axes[-1], 0, 1).expand(out.shape).clone()
            self.write(out, plane, one)
            self.graph.heads[module, name] = rows[-number:, 0]
            return True
        return False

    def _copy(self, source: torch.Tensor, out: torch.Tensor) -> None:
        if self.labelled(source) and _base_differs(source, out):
            for plane in range(PLANES):
                self.write(out, plane, self.read(source, plane).expand(out.shape))

    def _move(self, func: Any, args: Any, kwargs: Any, outs: Any) -> None:
        kwargs = {k: v for k, v in kwargs.items() if k != "memory_format"}
        for plane in range(PLANES):
            if func.overloadpacket is aten.index:
                moved = self.read(args[0], plane).clone()[
                    tuple(slice(None) if i is None else i for i in args[1])
                ]
            else:
                moved = func(*self._replaced(args, plane), **kwargs)
            self.write(outs[0], plane, moved)

    def _replaced(self, args: Any, plane: int) -> list[Any]:
        """The arguments with atoms in place of data; indices stay."""
        found: list[Any] = []
        for arg in args:
            if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], torch.Tensor):
                found.append([self.read(x, plane).contiguous() for x in arg])
            elif isinstance(arg, torch.Tensor) and not found:
                found.append(self.read(arg, plane).contiguous())
            else:
                found.append(arg)
        return found

    def _along(self, x: torch.Tensor, axis: int, out: torch.Tensor) -> None:
        for plane in range(PLANES):
            atoms = self.read(x, plane)
            if axis % x.dim() in _axes(atoms):
                self.atoms.pin(atoms)
            self.write(out, plane, atoms)

    def _reduce(self, x: torch.Tensor, outs: Any) -> None:
        for plane in range(PLANES):
            atoms, out = self.read(x, plane), outs[0]
            kept = [d for d in range(x.dim()) if d in _axes(atoms)]
            shape = [n if d in kept else 1 for d, n in enumerate(x.shape)]
            small = atoms[tuple(slice(None) if d in kept else slice(0, 1) for d in range(x.dim()))]
            fits = _aligned(shape, x.shape, out.shape)
            if fits is None:
                self.atoms.pin(atoms)
                continue
            for each in outs:
                self.write(each, plane, small.reshape(fits).expand(each.shape))

    def _pool(self, x: torch.Tensor, outs: Any) -> None:
        for plane in range(PLANES):
            atoms = self.read(x, plane)
            lead = x.dim() - (outs[0].dim() - 2 if outs[0].dim() > 2 else 1)
            if any(axis >= lead for axis in _axes(atoms)):
                self.atoms.pin(atoms)
                continue
            index = tuple(slice(None) if d < lead else slice(0, 1) for d in range(x.dim()))
            for out in outs:
                self.write(out, plane, atoms[index].expand(out.shape))

    # ---- layers -------------------------------------------------------------------------------

    def _channels(self, x: torch.Tensor, axis: int) -> torch.Tensor | None:
        """The atoms along an axis, if they vary along no other; else they are held."""
        atoms = self.read(x, 0)
        if set(_axes(atoms)) - {axis}:
            self.atoms.pin(atoms)
            return None
        return atoms[tuple(slice(None) if d == axis else 0 for d in range(x.dim()))].clone()

    def _convolve(self, args: Any, out: torch.Tensor) -> None:
        x, weight, bias = args[:3]
        transposed, groups = args[6], args[8]
        rows, columns = self._of_weight(weight, 1 if transposed else 0)
        given = self._channels(x, 1)
        if groups == 1:
            self._contract(given, columns)
        elif groups == x.shape[1] == out.shape[1] and given is not None:
            self.atoms.join(given, rows)
        else:  # as many channels would have to go from every group
            for atoms in (given, rows, columns):
                if atoms is not None:
                    self.atoms.pin(atoms)
        if len(rows) != out.shape[1]:  # transposed, in groups
            self.atoms.pin(rows)
            return
        if self.labelled(bias):
            self.atoms.join(self.read(bias, 0), rows)
        shape = [1, -1, *[1] * (out.dim() - 2)]
        self.write(out, 0, rows.view(shape).expand(out.shape))

    def _of_weight(self, weight: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Atoms of a weight's output axis, and of its input axis."""
        found = {}
        for plane in range(PLANES):
            atoms = self.read(weight, plane)
            axes = _axes(atoms)
            if len(axes) == 1:
                index = tuple(slice(None) if d == axes[0] else 0 for d in range(weight.dim()))
                found[axes[0]] = atoms[index].clone()
            elif axes:
                self.atoms.pin(atoms)
        none = torch.zeros((), dtype=torch.int32)
        return (
            found.get(axis, none.expand(weight.shape[axis])).clone(),
            found.get(1 - axis, none.expand(weight.shape[1 - axis])).clone(),
        )

    def _contract(self, one: torch.Tensor | None, other: torch.Tensor | None) -> None:
        """What is summed over goes from both or from neither."""
        if one is None or other is None:
            for atoms in (one, other):
                if atoms is not None:
                    self.atoms.pin(atoms)
            return
        self.atoms.pin(one[other == 0])
        self.atoms.pin(other[one == 0])
        self.atoms.join(one, other)

    def _multiply(self, packet: Any, args: Any, out: torch.Tensor) -> None:
        bias = args[0] if len(args) == 3 else None
        left, right = args[-2:]
        inner = left.dim() - 1, right.dim() - 2
        summed = [self._axis_of(left, inner[0]), self._axis_of(right, inner[1])]
        self._contract(*summed)
        if out.dim() == 3 and (batch := self._each(left, right, out)) is not None:
            self._product(packet, left, right, out, [summed[0], batch])
            return
        below, across = self._axis_of(left, left.dim() - 2), self._axis_of(right, right.dim() - 1)
        self._product(packet, left, right, out, [summed[0], below, across])
        for plane, (atoms, axis) in enumerate(((across, out.dim() - 1), (below, out.dim() - 2))):
            if atoms is not None and atoms.any():
                shape = [-1 if d == axis else 1 for d in range(out.dim())]
                self.write(out, plane, atoms.view(shape).expand(out.shape))
                if plane == 0 and bias is not None and self.labelled(bias):
                    self.atoms.join(self.read(bias, 0).expand(out.shape), self.read(out, 0))

    def _product(
        self,
        packet: Any,
        left: torch.Tensor,
        right: torch.Tensor,
        out: torch.Tensor,
        axes: list[torch.Tensor | None],
    ) -> None:
        name = self.modules.product(packet, (left, right))
        if name is not None:
            known = [atoms for atoms in axes if atoms is not None and bool(atoms.any())]
            self.graph.products.append(Product(name, out.numel() * left.shape[-1], known))

    def _each(
        self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor | None:
        """Of products in a batch whose entries are heads, their atoms."""
        one, other = self._axis_of(left, 0), self._axis_of(right, 0)
        if one is None or other is None or not (one.any() or other.any()):
            return None
        self.atoms.join(one, other)
        heads = torch.where(one > 0, one, other)
        self.write(out, 0, heads.view(-1, 1, 1).expand(out.shape))
        return heads

    def _axis_of(self, x: torch.Tensor, axis: int) -> torch.Tensor | None:
        """Atoms that vary along this axis alone, of whichever plane; None where along more."""
        found: torch.Tensor | None = torch.zeros(x.shape[axis], dtype=torch.int32)
        for plane in range(PLANES):
            atoms = self.read(x, plane)
            axes = _axes(atoms)
            if axes == [axis]:
                found = atoms[
                    tuple(slice(None) if d == axis else 0 for d in range(x.dim()))
                ].clone()
            elif len(axes) > 1:
                self.atoms.pin(atoms)
                return None
        return found

    def _normalise(self, args: Any, out: torch.Tensor) -> None:
        given = self._channels(args[0], 1)
        if given is None:
            return
        for vector in args[1:5]:
            if self.labelled(vector):
                self.graph.follows[id(vector)] = given
                self.atoms.join(self.read(vector, 0), given)
        shape = [1, -1, *[1] * (out.dim() - 2)]
        self.write(out, 0, given.view(shape).expand(out.shape))


def _axes(atoms: torch.Tensor) -> list[int]:
    """The axes along which atoms vary."""
    found = []
    for axis, size in enumerate(atoms.shape):
        if size > 1 and bool((atoms != atoms.narrow(axis, 0, 1)).any()):
            found.append(axis)
    return found


def _broadcasts(shape: Any, to: Any) -> bool:
    if len(shape) > len(to):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def _base_differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()


def _aligned(small: list[int], full: Any, out: Any) -> list[int] | None:
    """The shape of ``small`` with the reduced axes of ``full`` left out; None where it has them."""
    if len(out) == len(full):
        return small if _broadcasts(small, out) else None
    kept, place = [], 0
    for size, whole in zip(small, full, strict=True):
        if place < len(out) and out[place] == whole and (size > 1 or len(out) - place > 0):
            kept.append(size)
            place += 1
        elif size > 1:
            return None
    return kept if place == len(out) else None
