"""What the cell is given, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["check_batch", "inputs_of", "level_table"]


def level_table(levels: Any) -> list[list[nn.Module]] | None:
    """The columns as lists, or None where one list of modules stands for all steps."""
    if not isinstance(levels, Sequence | nn.ModuleList) or len(levels) == 0:
        raise TypeError(
            "levels must be a sequence of modules, or one such sequence per step, and not empty; "
            f"got {levels!r}"
        )
    is_column = [isinstance(entry, list | tuple | nn.ModuleList) for entry in levels]
    modules: list[Any] = [
        m for entry, c in zip(levels, is_column, strict=True) for m in (entry if c else [entry])
    ]
    wrong: Any = next((m for m in modules if not isinstance(m, nn.Module)), None)
    if wrong is not None or len(set(is_column)) > 1:
        what = f"a {type(wrong).__name__}" if wrong is not None else "both kinds mixed"
        raise TypeError(f"levels must hold modules, or sequences of modules, got {what}")
    if not is_column[0]:
        return None
    columns: list[Any] = list(levels)
    table: list[list[nn.Module]] = [list(column) for column in columns]
    if not table[0] or len({len(column) for column in table}) > 1:
        raise ValueError(
            "levels must have the same number of modules, at least one, for every step, got "
            f"{[len(column) for column in table]}"
        )
    return table


def inputs_of(
    x_seq: torch.Tensor | Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], list[int] | None, int]:
    """The distinct input tensors, which one each step reads (None: slices), and T."""
    if isinstance(x_seq, torch.Tensor):
        if x_seq.dim() < 2 or len(x_seq) == 0:
            raise ValueError(
                f"x_seq must have shape [T, N, *] with at least one step, got {list(x_seq.shape)}"
            )
        return [x_seq], None, len(x_seq)
    if not isinstance(x_seq, Sequence) or not all(isinstance(x, torch.Tensor) for x in x_seq):
        raise TypeError(
            "x_seq must be a tensor [T, N, *] or a sequence of T tensors, "
            f"got {type(x_seq).__name__}"
        )
    if not x_seq:
        raise ValueError("x_seq must have at least one step, got an empty sequence")
    unique = list({id(x): x for x in x_seq}.values())
    place = {id(x): i for i, x in enumerate(unique)}
    return unique, [place[id(x)] for x in x_seq], len(x_seq)


def check_batch(x: torch.Tensor, state: torch.Tensor | None) -> None:
    if state is not None and x.dim() and state.dim() and len(x) != len(state):
        raise ValueError(
            f"x has a batch of shape {list(x.shape)}, but the state carried over has shape "
            f"{list(state.shape)}; a new batch size needs functional.reset_net first"
        )
