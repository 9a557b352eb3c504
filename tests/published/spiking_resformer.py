"""SpikingResformer from recordings of its program."""

from __future__ import annotations

from sj_ext import host
from sj_ext.layer import DSSA, GWFFN, Downsampling, ResidualBlock
from sj_ext.layer.spiking import lif
from sj_ext.model.transformer import spiking_resformer

from .parts import Rearranged, loaded_part, steps_first, tensors_of


def build(stem, config, state):
    learned = any(name.endswith(".w") for name in state)
    node = host.neuron.ParametricLIFNode if learned else host.neuron.LIFNode
    neuron = lif(2.0, host.surrogate.ATan(), node)
    if "classifier.weight" in state:
        return _model(config, state, neuron)
    if "Wproj.weight" in state:
        attention = DSSA(
            config["dim"], config["num_heads"], neuron, patch_size=config["patch_size"]
        )
        part, at = ResidualBlock(attn=attention), "0.0"
    elif "up.1.weight" in state:
        hidden, dim = state["up.1.weight"].shape[:2]
        mlp = GWFFN(
            dim,
            neuron,
            num_conv=len({name.split(".")[1] for name in state if name.startswith("conv.")}),
            ratio=hidden / dim,
            group_size=config["group_size"],
        )
        part, at = ResidualBlock(mlp=mlp), "0.0"
    else:
        after, before, kernel = state["conv.weight"].shape[:3]
        part, at = Downsampling(before, after, kernel, config["stride"], neuron), "1.0"
    return part, loaded_part(part, state, spiking_resformer.NAMES, f"layers.{at}.", f"body.{at}.")


def _model(config, state, neuron):
    first = state["prologue.0.weight"]
    model = spiking_resformer.spiking_resformer(
        len(state["classifier.weight"]),
        config["T"],
        neuron,
        widths=config["planes"],
        num_heads=config["num_heads"],
        patch_sizes=config["patch_sizes"],
        layers=config["layers"],
        group_size=config["group_size"],
        in_channels=first.shape[1],
        prologue="imagenet" if first.shape[-1] == 7 else "small",
    )
    spiking_resformer.load_published(model, state)
    return Rearranged(model, steps_first), tensors_of(model, state)
