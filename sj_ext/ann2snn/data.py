"""Calibration data in whatever form it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["Batches"]

#: keys under which dicts hold the network's input and the label
_INPUTS = ("input", "inputs", "image", "images", "img", "x", "data", "pixel_values")
_LABELS = ("label", "labels", "target", "targets", "y")
#: rows of one batch where one tensor is all of the data
_ROWS = 64


class Batches:
    """Pairs of an input and, where there is one, a label, as often as they are asked for.

    Args:
        data: one tensor ``[N, *]``; a pair of tensors, inputs and integer labels; or an iterable of
            tensors, of tuples or lists that begin with input and label, or of dicts.
        device: where inputs and labels go.

    Raises:
        TypeError: data or a batch of another kind.
        ValueError: ``None`` or no batch, or a dict without a known key.
    """

    def __init__(self, data: Any, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        if data is None:
            raise ValueError("calibration: this recipe needs calibration data, got None")
        if isinstance(data, Batches):
            data = data.data
        elif isinstance(data, torch.Tensor):
            data = data.split(_ROWS)
        elif _is_labelled(data):
            data = list(zip(data[0].split(_ROWS), data[1].split(_ROWS), strict=True))
        elif not isinstance(data, Iterable) or isinstance(data, str | Mapping):
            raise TypeError(
                f"calibration must be a tensor or an iterable of batches, got {type(data).__name__}"
            )
        elif isinstance(data, Iterator):  # it could be gone through once only
            data = list(data)
        self.data: Iterable[Any] = data

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        empty = True
        for batch in self.data:
            x, y = _split(batch)
            empty = False
            yield x.to(self.device), None if y is None else y.to(self.device)
        if empty:
            raise ValueError("calibration has no batch")

    def inputs(self) -> Iterator[torch.Tensor]:
        """The inputs only."""
        for x, _ in self:
            yield x

    def labelled(self, what: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and labels.

        Args:
            what: who needs the labels, for the error.

        Yields:
            Pairs ``[N, *]``, ``[N]``.

        Raises:
            ValueError: a batch without labels.
        """
        for x, y in self:
            if y is None:
                raise ValueError(
                    f"calibration has no labels, which {what} needs: give batches (input, label)"
                )
            yield x, y


def _is_labelled(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, torch.Tensor) for part in data)
        and not data[1].is_floating_point()
        and data[1].dim() == 1
        and len(data[0]) == len(data[1])
    )


def _split(batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in _INPUTS if key in batch), None)
        y = next((batch[key] for key in _LABELS if key in batch), None)
        if x is None and len(batch) == 1:
            x = next(iter(batch.values()))
        if x is None:
            raise ValueError(
                f"calibration: a batch has the keys {sorted(map(str, batch))}, and none of "
                f"{', '.join(_INPUTS)}"
            )
    elif isinstance(batch, tuple | list):
        if not batch:
            raise ValueError("calibration: a batch is an empty sequence")
        x, y = batch[0], batch[1] if len(batch) > 1 else None
    else:
        x, y = batch, None
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"calibration: the input of a batch must be a tensor, got {type(x).__name__}"
        )
    if y is not None and not isinstance(y, torch.Tensor):
        y = torch.as_tensor(y)
    return x, y
