"""State dicts of sj_ext 0.1, whose pruned layers were parametrized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .wrappers import plain_name, without_compile

__all__ = ["plain_state_dict"]


def plain_state_dict(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a plain network, from one that sj_ext 0.1 saved while it was pruned.

    ``X.parametrizations.weight.original`` becomes ``X.weight``, with zeros where a closed mask
    cuts; names lose the ``module.`` of ``DistributedDataParallel`` and the ``_orig_mod.`` of
    ``torch.compile``. Any other state dict comes back with its own entries, so that this is safe on
    every file.

    Args:
        state: what ``model.state_dict()`` gave.

    Raises:
        TypeError: ``state`` is no mapping.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a state dict, got {type(state).__name__}")
    plain: dict[str, Any] = {}
    # a network may have a child of this name; a wrapper has nothing else
    wrapped = all(name.removeprefix("_orig_mod.").startswith("module.") for name in state)
    named = plain_name if wrapped else without_compile
    for name, value in state.items():
        layer, found, entry = name.partition("parametrizations.weight.")
        if not found:
            plain[named(name)] = value
        elif entry == "original":
            prefix = f"{layer}parametrizations.weight.0."
            mask = state.get(f"{prefix}mask")
            closed = bool((state.get(f"{prefix}_extra_state") or {}).get("closed"))
            cut = mask is not None and closed
            plain[named(f"{layer}weight")] = value * mask if cut else value
    return plain
