"""Ranks of a distributed run cut the same weights, or say that they do not."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist

__all__ = ["require_same", "several"]


def several() -> bool:
    """More than one process is in the default group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def require_same(what: str, *parts: object) -> None:
    """Raise, on every rank, unless all ranks ask with the same; one small all-reduce.

    Args:
        what: what differs, in words, and what to do.
        parts: bytes, or anything whose ``repr`` says it all, floats to the last bit.

    Raises:
        RuntimeError: two ranks differ.
    """
    digest = hashlib.blake2b(digest_size=7)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    number = int.from_bytes(digest.digest(), "big")
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    ends = torch.tensor([number, -number], device=device)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise RuntimeError(
            f"{what} (seen by rank {dist.get_rank()} of {dist.get_world_size()}; ranks that train "
            "networks of their own, each with its own pruner, need across_ranks=False)"
        )
