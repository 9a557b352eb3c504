"""STS-Transformer from recordings of its program."""

from __future__ import annotations

from functools import partial

from sj_ext.layer import ResidualBlock, SpikingMLP
from sj_ext.layer.attention.stsa import STSA
from sj_ext.model.transformer import sts

from .parts import Rearranged, loaded_part, steps_first, tensors_of


def build(stem, config, state):
    neuron = _neuron(config)
    if "classification.weight" in state:
        return _model(config, state, neuron)
    dim, heads = config["dim"], config["num_heads"]
    part = STSA(dim, heads, config["T"], config["H"], config["W"], neuron, published_layout=True)
    inner = "attn."
    if "mlp.fc1_conv.weight" in state:
        hidden = len(state["mlp.fc1_conv.weight"])
        part = ResidualBlock(attn=part, mlp=SpikingMLP(dim, hidden, neuron, shortcut="spike"))
        inner = ""
    return part, loaded_part(part, state, sts.NAMES, f"block.0.{inner}", f"body.0.{inner}")


def _neuron(config):
    """The program's ``tau`` is what is left of a potential after a step."""
    return partial(sts.sts_neuron(), tau=1 / (1 - config.get("tau", 0.5)))


def _model(config, state, neuron):
    hidden, dim = state["block.0.mlp.fc1_conv.weight"].shape[:2]
    model = sts.sts_transformer(
        len(state["classification.weight"]),
        config["T"],
        neuron,
        depth=len({name.split(".")[1] for name in state if name.startswith("block.")}),
        dim=dim,
        num_heads=config["num_heads"],
        mlp_ratio=hidden / dim,
        in_channels=state["conv_stem.block1_conv.weight"].shape[1],
        image_size=config["img_size"],
        published_layout=True,
    )
    sts.load_published(model, state)
    return Rearranged(model, steps_first, lambda y: y.transpose(0, 1)), tensors_of(model, state)
