"""Our modules as the recordings of public programs want them: built from a configuration and state.

A recording holds inputs, a state dict in the public program's names, outputs, gradients and
buffers. Each family of methods has a module here that builds ours from it and says which of our
tensors stands for which public name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

#: beginnings of the recordings' names, and the module here that builds them
FAMILIES: dict[str, tuple[str, ...]] = {
    "autost": ("autost_",),
    "readings": ("dista_", "fwmixer_"),
    "revsnn": ("revsnn_",),
    "sglformer": ("sglformer_",),
    "sts": ("sts_",),
    "swformer": ("swformer_",),
    "spikingformer": ("spikingformer_", "cml_model_spikingformer", "cml_tokenizer"),
    "meta_spikeformer": ("sdtv2_",),
    "spikeformer": ("ct_",),
    "spiking_resformer": ("resformer_",),
    "spikformer": ("cml_sps", "cml_model_spikformer", "spikformer_"),
}


def build(
    stem: str, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The module that a recording is of, and our tensor for every public name in ``state``.

    Args:
        stem: the recording's name without its end; its beginning says which method it is of.
        config: sizes and options as the recording holds them; empty where shapes say it all.
        state: the public program's state dict.

    Raises:
        KeyError: no family here has recordings of that name.
    """
    for family, beginnings in FAMILIES.items():
        if stem.startswith(beginnings):
            return importlib.import_module(f"published.{family}").build(stem, config, state)
    raise KeyError(f"{stem}: no family has recordings of that name; there are {FAMILIES}")
