"""Spikeformer, with the convolutional tokenizer, from recordings of its program."""

from __future__ import annotations

from functools import partial

from sj_ext import host
from sj_ext.layer import ConvTokenizer, SEWBlock
from sj_ext.layer.spiking import lif
from sj_ext.model.transformer import spikeformer
from sj_ext.neuron import ParametricLIAFNode

from .parts import Rearranged, loaded_part, steps_first, tensors_of


def build(stem, config, state):
    graded = "liaf" in f"{stem} {config.get('cls', '')}".lower()
    neuron = (
        partial(ParametricLIAFNode, detach_reset=True)
        if graded
        else lif(2.0, None, host.neuron.ParametricLIFNode)
    )
    if "model.head.weight" in state:
        return _model(config, state, neuron)
    if "conv_layers.0.residual_function.0.0.0.weight" in state:
        part = ConvTokenizer(
            config["n_input_channels"],
            config["n_output_channels"],
            _strides(config),
            neuron,
            kernel_size=config["kernel_size"],
            padding=config["padding"],
            paired=not isinstance(config["stride"], int),
        )
        tensors = loaded_part(part, state, spikeformer.NAMES, "model.patch_embed.", "stem.")
        return Rearranged(part, steps_first, _tokens), tensors
    part = SEWBlock(
        config["in_channels"],
        config["out_channels"],
        config["kernel_size"],
        config["stride"],
        config["padding"],
        neuron,
    )
    names = spikeformer.NAMES
    return part, loaded_part(
        part, state, names, "model.patch_embed.conv_layers.0.", "stem.blocks.0."
    )


def _strides(config):
    stride = config["stride"]
    return [stride] * config["n_conv_layers"] if isinstance(stride, int) else stride


def _tokens(y):
    """``[T, N, C, H, W]`` to ``[N T, L, C]``."""
    return y.transpose(0, 1).flatten(0, 1).flatten(-2).mT


def _model(config, state, neuron):
    model = spikeformer.spikeformer(
        config["num_classes"],
        config["num_frames"],
        neuron,
        img_size=config["img_size"],
        strides=_strides(config),
        paired=not isinstance(config["stride"], int),
        kernel_size=config["kernel_size"],
        padding=config["padding"],
        dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        in_channels=config["n_input_channels"],
        drop_path=config["drop_path_rate"],
    )
    spikeformer.load_published(model, state)
    return Rearranged(model, steps_first, lambda y: y.squeeze(0)), tensors_of(model, state)
