"""Spikingformer and Spikingformer-CML from recordings of their programs."""

from __future__ import annotations

import re

from sj_ext.layer import SSA, ResidualBlock, SpikingMLP
from sj_ext.model.transformer import spikingformer

from .parts import (
    Rearranged,
    loaded_part,
    mean_over_steps,
    program_lif,
    steps_first,
    tensors_of,
)


def build(stem, config, state):
    described = f"{stem} {config.get('cls', '')}".lower()
    downsampling = "cml" if "cml" in described else "original"
    neuron = program_lif(_tau(described, downsampling))
    if any(name.startswith("patch_embed.") for name in state):
        return _model(config, state, downsampling, neuron)
    names = spikingformer.NAMES[downsampling, 16]
    if any(name.startswith("attn.") for name in state):
        part, inner = _block(config, state, neuron), ""
    elif "q_conv.weight" in state:
        part, inner = SSA(config["dim"], config["num_heads"], neuron), "attn."
    elif "mlp1_conv.weight" in state:
        hidden, dim = state["mlp1_conv.weight"].shape[:2]
        part, inner = SpikingMLP(dim, hidden, neuron), "mlp."
    else:
        return _tokenizer(config, state, downsampling, neuron)
    return part, loaded_part(part, state, names, f"block.0.{inner}", f"body.0.{inner}")


def _tau(described, downsampling):
    said = re.search(r"tau=([\d.]+)", described)
    if said:
        return float(said[1])
    return {"original": 1.5, "cml": 1.75}[downsampling] if "dvs" in described else 2.0


def _block(config, state, neuron):
    hidden, dim = state["mlp.mlp1_conv.weight"].shape[:2]
    return ResidualBlock(
        attn=SSA(dim, config["num_heads"], neuron), mlp=SpikingMLP(dim, hidden, neuron)
    )


def _patch_size(config, state, prefix):
    """4 where the program for CIFAR says so, by its option or, in row 1, by its names."""
    if f"{prefix}block0_conv.weight" in state:
        return 4
    return config.get("patch_size", 16)


def _tokenizer(config, state, downsampling, neuron):
    patch_size = _patch_size(config, state, "")
    first = next(iter(state.values()))
    part = spikingformer.spikingformer_stem(
        8 * first.shape[0],
        neuron,
        in_channels=first.shape[1],
        patch_size=patch_size,
        downsampling=downsampling,
    )
    names = spikingformer.NAMES[downsampling, patch_size]
    return part, loaded_part(part, state, names, "patch_embed.", "stem.")


def _model(config, state, downsampling, neuron):
    hidden, dim = state["block.0.mlp.mlp1_conv.weight"].shape[:2]
    depth = len({name.split(".")[1] for name in state if name.startswith("block.")})
    first = next(v for n, v in state.items() if re.search(r"(proj|block0)_conv\.weight$", n))
    model = spikingformer.spikingformer(
        len(state["head.weight"]),
        config["T"],
        neuron,
        depth=depth,
        dim=dim,
        num_heads=config["num_heads"],
        mlp_ratio=hidden / dim,
        in_channels=first.shape[1],
        patch_size=_patch_size(config, state, "patch_embed."),
        downsampling=downsampling,
    )
    spikingformer.load_published(model, state)
    return Rearranged(model, steps_first, mean_over_steps), tensors_of(model, state)
