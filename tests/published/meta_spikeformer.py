"""Meta-SpikeFormer from recordings of its program."""

from __future__ import annotations

from sj_ext.layer import SDSA3, Downsampling, RepConv, ResidualBlock, SepConv, SpikingMLP
from sj_ext.model.transformer import meta_spikeformer

from .parts import (
    Rearranged,
    loaded_part,
    mean_over_steps,
    program_lif,
    steps_first,
    tensors_of,
)


def build(stem, config, state):
    if "head.weight" in state:
        return _model(config, state)
    kind = _kind(state)
    part, public, ours = _PARTS[kind](config, state)
    tensors = loaded_part(part, state, meta_spikeformer.NAMES, public, ours)
    if kind == "repconv":  # the recording has no axis of time
        return Rearranged(part, lambda x: x.unsqueeze(0), lambda y: y.squeeze(0)), tensors
    return part, tensors


def _kind(state):
    """Which part has such names."""
    for kind, name in (
        ("repconv", "body.0.weight"),
        ("block", "attn.q_conv.0.body.0.weight"),
        ("attn", "q_conv.0.body.0.weight"),
        ("convblock", "Conv.pwconv1.weight"),
        ("sepconv", "pwconv1.weight"),
        ("mlp", "fc1_conv.weight"),
        ("down", "encode_conv.weight"),
    ):
        if name in state:
            return kind
    raise KeyError(f"no part of Meta-SpikeFormer has {next(iter(state))}")


def _rep_conv(config, state):
    channels = state["body.2.1.weight"].shape
    part = RepConv(channels[1], channels[0])
    return part, "block3.0.attn.q_conv.0.", "body.blocks3.0.attn.q.rep."


def _attention(config, state):
    part = SDSA3(state["q_conv.1.weight"].numel(), config["num_heads"], program_lif())
    return part, "block3.0.attn.", "body.blocks3.0.attn."


def _block(config, state):
    hidden, dim = state["mlp.fc1_conv.weight"].shape[:2]
    attention = SDSA3(dim, config["num_heads"], program_lif())
    return (
        ResidualBlock(attn=attention, mlp=SpikingMLP(dim, hidden, program_lif())),
        "block3.0.",
        "body.blocks3.0.",
    )


def _conv_block(config, state):
    hidden, dim = state["conv1.weight"].shape[:2]
    sep = _sep_conv(config, {k.removeprefix("Conv."): v for k, v in state.items()})[0]
    mlp = SpikingMLP(dim, hidden, program_lif(), bias=False, kernel_size=3)
    return ResidualBlock(sep=sep, mlp=mlp), "ConvBlock1_1.0.", "body.conv1_1."


def _sep_conv(config, state):
    hidden, dim = state["pwconv1.weight"].shape[:2]
    kernel = state["dwconv.weight"].shape[-1]
    part = SepConv(dim, program_lif(), ratio=hidden / dim, kernel_size=kernel)
    return part, "ConvBlock1_1.0.Conv.", "body.conv1_1.sep."


def _mlp(config, state):
    hidden, dim = state["fc1_conv.weight"].shape[:2]
    return SpikingMLP(dim, hidden, program_lif()), "block3.0.mlp.", "body.blocks3.0.mlp."


def _down(config, state):
    after, before, kernel = state["encode_conv.weight"].shape[:3]
    part = Downsampling(
        before,
        after,
        kernel,
        config["stride"],
        program_lif(),
        first=config["first_layer"],
        bias=True,
    )
    return part, "downsample2.", "body.down2."


_PARTS = {
    "repconv": _rep_conv,
    "block": _block,
    "attn": _attention,
    "convblock": _conv_block,
    "sepconv": _sep_conv,
    "mlp": _mlp,
    "down": _down,
}


def _model(config, state):
    hidden, dim = state["block3.0.mlp.fc1_conv.weight"].shape[:2]
    model = meta_spikeformer.meta_spikeformer(
        len(state["head.weight"]),
        config["T"],
        program_lif(),
        widths=[len(state[f"downsample{i}.encode_conv.weight"]) for i in ("1_2", "2", "3", "4")],
        depths=tuple(
            len({n.split(".")[1] for n in state if n.startswith(f"block{i}.")}) for i in (3, 4)
        ),
        num_heads=config["num_heads"],
        mlp_ratio=hidden / dim,
        in_channels=state["downsample1_1.encode_conv.weight"].shape[1],
        distillation="head_kd.weight" in state,
    )
    meta_spikeformer.load_published(model, state)
    return Rearranged(model, steps_first, _means), tensors_of(model, state)


def _means(y):
    return tuple(map(mean_over_steps, y)) if isinstance(y, tuple) else mean_over_steps(y)
