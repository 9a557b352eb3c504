"""DISTA and linear mixers, of which there is no program: recordings of a float64 transcription."""

from __future__ import annotations

import torch

from sj_ext import host
from sj_ext.layer import LinearMixer
from sj_ext.layer.attention.dista import DISTAttention

from .parts import Rearranged, Shaped

_DISTA = {
    "proj_weight": "proj.conv.weight",
    "proj_bias": "proj.conv.bias",
    "attn_lif.w": "neuron_attn.w",
    "proj_lif.w": "neuron_out.w",
}


def build(stem, config, state):
    if "mode" in config:
        part = LinearMixer(config["C"], config["mode"], inverse=config["inverse"])
        names = {name: name for name in state}
    else:
        part = DISTAttention(
            config["C"],
            config["num_heads"],
            window=config["window"],
            denoise=config["denoise_u"],
            scale=config["scale"],
            v_threshold=config["attn_v_threshold"],
        )
        names = {name: _ours(name) for name in state}
    host.functional.set_step_mode(part, "m")
    ours = dict(part.named_parameters()) | dict(part.named_buffers())
    with torch.no_grad():
        for name, value in state.items():
            ours[names[name]].copy_(value.view_as(ours[names[name]]))
    tensors = {
        name: ours[names[name]]
        if ours[names[name]].shape == value.shape
        else Shaped(ours[names[name]], value.shape)
        for name, value in state.items()
    }
    return Rearranged(part, lambda x: x.unsqueeze(-1), lambda y: y.squeeze(-1)), tensors


def _ours(name):
    if name in _DISTA:
        return _DISTA[name]
    if name.startswith("proj_bn."):
        return name.replace("proj_bn.", "proj.bn.")
    part, _, rest = name.partition("_")
    return f"neuron_{part}.w" if rest == "lif.w" else f"{part}.{rest}"
