"""Checkpoints for train_trevsnn.py to start from or evaluate: its own, and published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sj_ext.checkpoint import load_checkpoint
from sj_ext.model.trevsnn import published_arguments, published_to_ours


class Weights(NamedTuple):
    """What a checkpoint has of a network."""

    #: arguments of TRevSNN that make the network, those that the file tells
    arguments: dict[str, Any]
    model: dict[str, torch.Tensor]
    #: the averaged weights, where the checkpoint has them
    ema: dict[str, torch.Tensor] | None


def read(path: Path) -> Weights:
    """Weights of one of our checkpoints, or of a published one."""
    try:
        state = load_checkpoint(path, map_location="cpu")
    except RuntimeError as error:
        if "could run code" not in str(error):
            raise
        raise RuntimeError(
            f"{error}. If you trust it, torch.load(path, weights_only=False) reads it; save its "
            "'model' and 'state_dict_ema' again in a dictionary, and give that"
        ) from None
    if "arguments" in state:
        return Weights(state["arguments"], state["model"], state["ema"])
    model = state.get("model", state)
    ema = state.get("state_dict_ema")
    try:
        return Weights(
            published_arguments(model),
            published_to_ours(model),
            None if ema is None else published_to_ours(ema),
        )
    except ValueError as error:
        raise ValueError(f"{path} is neither of this script nor a published one: {error}") from None


def start_from(model: nn.Module, path: Path) -> str:
    """Load first weights into a network; classifiers of other classes stay. Says what it did."""
    own, found = model.state_dict(), read(path).model
    differing = {name for name in own.keys() & found.keys() if own[name].shape != found[name].shape}
    heads = {name for name in own if name.startswith(("head.", "step_heads."))}
    if own.keys() != found.keys() or differing - heads:
        wrong = sorted((own.keys() ^ found.keys()) | (differing - heads))
        raise ValueError(
            f"--init-from {path} is of another network: {len(wrong)} tensors are not in both or "
            f"have other shapes, such as {wrong[0]}"
        )
    kept = heads if differing else set()
    model.load_state_dict({n: own[n] if n in kept else value for n, value in found.items()})
    return f"first weights of {path}" + (", but its classifiers" if kept else "")
