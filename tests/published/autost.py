"""AutoST's networks from recordings of its program."""

from __future__ import annotations

from sj_ext import host
from sj_ext.layer import SSA
from sj_ext.layer.spiking import lif
from sj_ext.model.transformer import autost

from .parts import Rearranged, loaded_part, mean_over_steps, tensors_of


def build(stem, config, state):
    if "head.weight" in state:
        dim = state["head.weight"].shape[1]
        model = autost.autost(
            len(state["head.weight"]),
            config["T"],
            dim=dim,
            num_heads=config["num_heads"],
            mlp_ratios=config["mlp_ratios"],
            in_channels=state["patch_embed.proj_conv.weight"].shape[1],
        )
        autost.load_published(model, state)
        return Rearranged(model, after=mean_over_steps), tensors_of(model, state)
    neuron = lif(node=host.neuron.ParametricLIFNode)
    part = SSA(config["dim"], config["num_heads"], neuron, qkv_bias=True)
    tensors = loaded_part(part, state, autost.NAMES, "block.0.attn.", "body.0.attn.")
    # [T, N, L, C] there
    whole = Rearranged(part, lambda x: x.mT.unsqueeze(-2), lambda y: y.squeeze(-2).mT)
    return whole, tensors
