"""What a pruned network is exported to: sparse matrices, or a smaller dense network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import host
from ..observe import at_rest, watching
from .layers import TRANSPOSED, is_prunable
from .masks import forget, mask_of, masked_layers, parameter_of
from .units import channels_first

__all__ = ["export_csr", "shrink"]


@torch.no_grad()
def export_csr(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The pruned layers' weights as sparse CSR matrices.

    Works on masked layers and, after :func:`make_permanent`, on every linear and convolutional
    layer that has zeros.

    Args:
        model: a model with masked layers, or with zeros in its weights.

    Returns:
        Per layer a mapping: ``weight``, a CSR tensor ``[out, in * kernel]``; ``shape``, that of the
        dense weight; ``bias``, a tensor or None. Of a transposed convolution the matrix is
        ``[in, out * kernel]``, as its weight is. The layer's weight is
        ``entry["weight"].to_dense().view(entry["shape"])``. Kept weights that
        happen to be zero are not stored.

    Raises:
        ValueError: no layer has zeros.
    """
    entries = {}
    for name, module in model.named_modules():
        if not is_prunable(module):
            continue
        weight = parameter_of(module).detach()
        mask = mask_of(module)
        if mask is not None and mask.closed:
            weight = weight * mask.mask
        if mask is None and bool(weight.all()):
            continue
        bias = None if module.bias is None else module.bias.detach().clone()
        entries[name] = {
            "weight": weight.flatten(1).to_sparse_csr(),
            "shape": tuple(weight.shape),
            "bias": bias,
        }
    if not entries:
        raise ValueError("model has no layer with zeros to export")
    return entries


def shrink(model: nn.Module, example_input: torch.Tensor, *, tolerance: float = 1e-5) -> nn.Module:
    """A smaller dense network without the cut output channels.

    The network's layers must form a chain: each linear or convolutional layer feeds the next, with
    normalisation, neurons, pooling, dropout and flattening in between, as in SpikingJelly's VGGs.
    Cut channels must be silent, as a pruner with ``granularity='channel'`` leaves them. The result
    is run beside the masked network on ``example_input``, in evaluation mode, and compared.

    Args:
        model: a network with closed channel masks; it is not changed.
        example_input: one batch as the network takes it.
        tolerance: largest difference of the outputs, relative to the largest output.

    Returns:
        A plain copy, smaller, in the training mode of ``model``.

    Raises:
        ValueError: no mask, a layer that cannot be cut, or a network that is no chain.
        RuntimeError: the outputs differ.
    """
    if not any(mask.closed for _, _, mask in masked_layers(model)):
        raise ValueError("model has no closed mask: shrink a network that a pruner has finished")
    host.functional.reset_net(model)
    small = copy.deepcopy(model)
    forget(small)
    order = _execution_order(small, example_input)
    kept: torch.Tensor | None = None  # channels that the last layer still gives
    width = 0
    for name, module in order:
        if is_prunable(module):
            kept, width = _cut_layer(name, module, kept, width)
        elif isinstance(module, _BatchNorm) and kept is not None and not kept.all():
            _cut_norm(name, module, kept)
        elif kept is not None and not kept.all():
            _refuse_channel_parameters(name, module)
    want, got = _run(model, example_input), _run(small, example_input)
    if want.shape != got.shape or (want - got).abs().max() > tolerance * want.abs().max().clamp(
        min=1e-12
    ):
        raise RuntimeError(
            "the smaller network's outputs differ from the masked one's: a cut channel is not "
            "silent, or layers do not form a chain"
        )
    return small


def _run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with at_rest(model):
        return model(x)


def _execution_order(model: nn.Module, x: torch.Tensor) -> list[tuple[str, nn.Module]]:
    """Leaf modules in the order in which they run; each once."""
    order: dict[str, nn.Module] = {}
    leaves = {
        name: module
        for name, module in model.named_modules()
        if is_prunable(module)
        or isinstance(module, host.base.MemoryModule)
        or not any(True for _ in module.children())
    }

    def note(name: str, module: nn.Module, x: torch.Tensor, out: torch.Tensor) -> None:
        order.setdefault(name, module)

    with watching(leaves, note):
        _run(model, x)
    return list(order.items())


@torch.no_grad()
def _cut_layer(
    name: str, module: Any, kept_in: torch.Tensor | None, width_in: int
) -> tuple[torch.Tensor, int]:
    transposed = isinstance(module, TRANSPOSED)
    rows = channels_first(module, module.weight.detach())
    if getattr(module, "groups", 1) != 1:
        if (kept_in is not None and not kept_in.all()) or not rows.flatten(1).any(1).all():
            raise ValueError(f"layer {name!r} has groups: its channels cannot be taken out")
        return torch.ones(len(rows), dtype=torch.bool), len(rows)
    kept_out = rows.flatten(1).any(1).cpu()
    if module.bias is not None:
        kept_out |= (module.bias != 0).cpu()
    if kept_in is not None and not kept_in.all():
        per_channel, rest = divmod(rows.shape[1], width_in)
        if rest:
            raise ValueError(
                f"layer {name!r} takes {rows.shape[1]} inputs, no multiple of the {width_in} "
                "channels of the layer before it: the network is no chain of layers"
            )
        # a linear layer behind a flattening has one input per channel and place
        rows = rows[:, kept_in.repeat_interleave(per_channel).to(rows.device)]
    rows = rows[kept_out.to(rows.device)]
    weight = rows.transpose(0, 1) if transposed else rows
    module.weight = nn.Parameter(weight.contiguous(), module.weight.requires_grad)
    if module.bias is not None:
        module.bias = nn.Parameter(
            module.bias.detach()[kept_out.to(module.bias.device)].clone(), module.bias.requires_grad
        )
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = rows.shape
    else:
        module.out_channels, module.in_channels = rows.shape[:2]
    return kept_out, len(kept_out)


@torch.no_grad()
def _cut_norm(name: str, module: Any, kept: torch.Tensor) -> None:
    if module.num_features != len(kept):
        raise ValueError(f"normalisation {name!r} does not have the channels of the layer before")
    here = kept.to(module.weight.device if module.weight is not None else "cpu")
    for key in ("weight", "bias"):
        if getattr(module, key) is not None:
            value = getattr(module, key)
            setattr(module, key, nn.Parameter(value.detach()[here].clone(), value.requires_grad))
    for key in ("running_mean", "running_var"):
        if getattr(module, key) is not None:
            setattr(module, key, getattr(module, key)[here].clone())
    module.num_features = int(kept.sum())


def _refuse_channel_parameters(name: str, module: nn.Module) -> None:
    for key, parameter in module.named_parameters(recurse=True):
        if parameter.numel() > 1:
            raise ValueError(
                f"{name}.{key} has shape {tuple(parameter.shape)} behind cut channels and is not "
                "known to shrink; prune weights instead, or leave the layer before it dense"
            )
