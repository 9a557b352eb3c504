"""Parameters that ``fully_shard`` (FSDP2) has split over processes.

Each process holds its rows as a ``DTensor``. Weights are ranked as a whole, so that every rank
gathers the pruned parameters for the moment of a selection, selects the same, and takes its own
part back. Masks are whole on every rank; the zeros are held in the part that is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = [
    "anywhere",
    "blank_mask",
    "finite",
    "gathered",
    "is_sharded",
    "local",
    "part_of",
    "reshard",
    "whole",
]


def is_sharded(tensor: Any) -> bool:
    """True for a part of a tensor that lives on several processes."""
    return hasattr(tensor, "placements")


def local(tensor: Any) -> torch.Tensor:
    """What this process holds, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> torch.Tensor:
    """All of the tensor; every rank has to ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def blank_mask(parameter: Any) -> torch.Tensor:
    """An unwritten mask for the whole of a parameter, in its memory layout where it has one."""
    if is_sharded(parameter):
        return torch.empty(parameter.shape, dtype=torch.bool, device=local(parameter).device)
    return torch.empty_like(parameter, dtype=torch.bool, requires_grad=False)


def part_of(full: torch.Tensor, like: Any) -> torch.Tensor:
    """The part of a whole tensor that belongs where ``like`` lives; a view.

    Raises:
        RuntimeError: ``like`` is split in a way that ``fully_shard`` does not split.
    """
    if not is_sharded(like):
        return full
    mesh = like.device_mesh
    for number, placement in enumerate(like.placements):
        kind = type(placement).__name__
        if kind == "Shard":
            parts, rank = full.chunk(mesh.size(number), placement.dim), mesh.get_local_rank(number)
            empty = full.narrow(placement.dim, 0, 0)
            full = parts[rank] if rank < len(parts) else empty
        elif kind != "Replicate":
            raise RuntimeError(
                f"a parameter is split as {placement}, which is not how fully_shard (FSDP2) alone "
                "splits: prune before tensor parallelism is applied, make_permanent(model), then "
                "shard"
            )
    return full


def anywhere(flag: bool, parameters: Iterable[Any]) -> bool:
    """True if ``flag`` is on any of the ranks that share sharded parameters."""
    for parameter in parameters:
        if is_sharded(parameter):
            found = torch.tensor(float(flag), device=local(parameter).device)
            mesh = parameter.device_mesh
            for number in range(mesh.ndim):
                torch.distributed.all_reduce(found, group=mesh.get_group(number))
            return bool(found)
    return flag


def finite(tensor: Any) -> bool:
    """No element is NaN or infinite, on any rank (nor are all beyond any training)."""
    return bool(torch.isfinite(whole(tensor.detach().sum())))


def reshard(model: nn.Module) -> None:
    """Put the parameters that a forward pass has left whole back to their shards."""
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "set_reshard_after_forward"):
            module.reshard()  # type: ignore[operator]  # a method, of FSDP2


@contextlib.contextmanager
def gathered(places: Iterable[tuple[nn.Module, str]], gradients: bool) -> Iterator[None]:
    """Within the context these parameters are whole plain tensors; changes go back to the shards.

    Args:
        places: modules, and the names of their parameters.
        gradients: take the gradients along.
    """
    found: dict[int, tuple[Any, nn.Parameter]] = {}
    swapped: list[tuple[nn.Module, str, Any]] = []
    for module, name in places:
        parameter = getattr(module, name)
        if not is_sharded(parameter):
            continue
        if id(parameter) not in found:
            full = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
            if gradients and parameter.grad is not None:
                full.grad = whole(parameter.grad)
            found[id(parameter)] = parameter, full
        swapped.append((module, name, parameter))
        module._parameters[name] = found[id(parameter)][1]
    try:
        yield
        with torch.no_grad():
            for parameter, full in found.values():
                local(parameter.detach()).copy_(part_of(full.detach(), parameter))
    finally:
        for module, name, parameter in swapped:
            module._parameters[name] = parameter
