"""SWformer from recordings of its three programs."""

from __future__ import annotations

from torch import nn

from sj_ext.layer import FrequencyMixer
from sj_ext.model.transformer import swformer
from sj_ext.neuron import NegIFNode

from .parts import Rearranged, loaded_part, mean_over_steps, steps_first, tensors_of


def build(stem, config, state):
    if not state:
        node = NegIFNode(
            config["v_threshold"],
            config["neg_v_threshold"],
            config["v_reset"],
            detach_reset=config["detach_reset"],
            step_mode="m",
        )
        return node, {}
    if "head.weight" in state:
        return _model(config, state)
    blocks, size = state["haar_weight"].shape[:2]
    events = config["variant"] == "swe"
    part = FrequencyMixer(
        blocks * size, blocks, v_threshold=config.get("haar_vth", 1.0), events=events
    )
    tensors = loaded_part(part, state, swformer.NAMES, "block.0.mixer.", "body.0.mixer.")
    return (_Shortcut(part) if config["variant"] == "swi" else part), tensors


class _Shortcut(nn.Module):
    """The program for ImageNet adds the input inside its mixer."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return x + self.module(x)


def _model(config, state):
    variant = config["variant"]
    weight = next(value for name, value in state.items() if name.endswith("haar_weight"))
    hidden, dim = state["block.0.mlp.fc1_conv.weight"].shape[:2]
    model = swformer.swformer(
        len(state["head.weight"]),
        config["T"],
        depth=len({name.split(".")[1] for name in state if name.startswith("block.")}),
        dim=dim,
        blocks=len(weight),
        mlp_ratio=hidden / dim,
        in_channels=state["patch_embed.proj_conv.weight"].shape[1],
        patch_size=config.get("patch_size", 4 if variant == "swc" else 16),
        v_threshold=config.get("haar_vth", 1.0),
        events=variant == "swe",
        firing_head=variant == "swi",
    )
    swformer.load_published(model, state)
    after = None if variant == "swe" else mean_over_steps
    return Rearranged(model, steps_first, after), tensors_of(model, state)
