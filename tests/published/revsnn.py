"""RevSNN from recordings of its program; the recordings say no T and no number of heads."""

from __future__ import annotations

import re

from sj_ext.layer import SSA, ReversibleSequence, SpikingMLP
from sj_ext.layer.spiking import lif
from sj_ext.model import revsnn
from sj_ext.model.revsnn import former, resnet

from .parts import Rearranged, loaded_part, mean_over_steps, tensors_of

#: channels of a head and steps of an image, in all recordings
HEAD, STEPS = 8, 3


def build(stem, config, state):
    blocks = _count(state, r"reversible_blocks\.(\d+)\.")
    if "fc.weight" in state:
        return _resnet(config, state)
    if "head.weight" in state:
        return _former(config, state, blocks)
    attention = "reversible_blocks.0.f_block.q_conv.weight" in state
    make = _former_block if attention else _residual_block
    part = ReversibleSequence([make(config, state, "") for _ in range(blocks)])
    names, whole = (former.NAMES, "block.") if attention else (resnet.NAMES, "layer1.")
    ours = "body.1." if attention else "stages.0."
    return part, loaded_part(part, state, names, whole, ours)


def _count(state, pattern):
    return 1 + max(int(found[1]) for name in state if (found := re.search(pattern, name)))


def _residual_block(config, state, prefix):
    channels = len(state[f"{prefix}reversible_blocks.0.f_block.conv1.1.weight"])
    neuron = resnet._integrate_and_fire()
    return resnet.residual_part(channels, neuron), resnet.residual_part(channels, neuron)


def _former_block(config, state, prefix):
    hidden, dim = state[f"{prefix}reversible_blocks.0.g_block.mlp1_conv.weight"].shape[:2]
    heads = config.get("num_heads", dim // HEAD)
    return SSA(dim, heads, lif()), SpikingMLP(dim, hidden, lif())


def _resnet(config, state):
    stages = _count(state, r"^layer(\d+)\.") - 1
    pattern = r"^layer{}\.reversible_blocks\.(\d+)\."
    model = revsnn.revsresnet(
        len(state["fc.weight"]),
        config.get("T", STEPS),
        channels=[
            len(state[f"layer{i}.reversible_blocks.0.f_block.conv1.1.weight"])
            for i in range(1, stages + 1)
        ],
        depths=[_count(state, pattern.format(i)) for i in range(1, stages + 1)],
        in_channels=state["conv1.weight"].shape[1],
    )
    return _loaded(model, state)


def _former(config, state, blocks):
    hidden, dim = state["block.reversible_blocks.0.g_block.mlp1_conv.weight"].shape[:2]
    model = revsnn.revsformer(
        len(state["head.weight"]),
        config.get("T", STEPS),
        depth=blocks,
        dim=dim,
        num_heads=config.get("num_heads", dim // HEAD),
        mlp_ratio=hidden / dim,
        in_channels=state["patch_embed.block0_conv.weight"].shape[1],
    )
    return _loaded(model, state)


def _loaded(model, state):
    revsnn.load_published(model, state)
    return Rearranged(model, after=mean_over_steps), tensors_of(model, state)
