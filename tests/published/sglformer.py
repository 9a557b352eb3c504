"""SGLFormer from recordings of its programs."""

from __future__ import annotations

from sj_ext.layer import SSA, LocalBlock, LocalSSA, ResidualBlock, SpikingMLP
from sj_ext.model.transformer import sglformer

from .parts import Rearranged, loaded_part, mean_over_steps, steps_first, tensors_of


def build(stem, config, state):
    if "head.weight" in state:
        return (
            _imagenet(config, state)
            if "patch_embed.proj_conv.weight" in state
            else _stages(config, state)
        )
    dim, heads = config["dim"], config.get("num_heads")
    names = sglformer.NAMES["stages"]
    if "a.q_conv.weight" in state:
        return _attention(stem, config, {n.removeprefix("a."): v for n, v in state.items()})
    if "ssa1.q_conv.conv1x1.weight" in state:
        part = _stage(dim, heads, len(state["mlp1.mlp1.bn.weight"]))
        return part, loaded_part(part, state, names, "blocks.0.", "body.0.")
    if "dwconv3x3.bn.weight" in state:
        part = LocalBlock(dim, ratio=len(state["dwconv3x3.bn.weight"]) // dim)
        return part, loaded_part(part, state, names, "blocks.0.loc.", "body.0.loc.")
    kind = LocalSSA if config["cls"] == "LocalSSA" else SSA
    options = {"groups": config.get("num_hw", 2)} if kind is LocalSSA else {}
    part = kind(dim, heads, shortcut="spike", proj_bias=False, **options)
    return part, loaded_part(part, state, names, "blocks.0.ssa1.", "body.0.ssa1.")


def _attention(stem, config, state):
    mixing = stem.endswith("asis") or config.get("N", 1) > 1
    kind = sglformer.BatchMixingSSA if mixing else SSA
    part = kind(config["dim"], config["num_heads"], shortcut="spike")
    names = sglformer.NAMES["imagenet"]
    tensors = loaded_part(part, state, names, "blocks.0.attn.", "body.blocks.0.attn.")
    whole = Rearranged(part, lambda x: x.unsqueeze(-1), lambda y: y.squeeze(-1))
    return whole, {f"a.{name}": tensor for name, tensor in tensors.items()}


def _stage(dim, heads, hidden):
    parts = {"loc": LocalBlock(dim)}
    for i, kind in enumerate((LocalSSA, SSA, SSA), start=1):
        parts[f"ssa{i}"] = kind(dim, heads, shortcut="spike", proj_bias=False)
        parts[f"mlp{i}"] = SpikingMLP(dim, hidden, shortcut="spike", bias=False)
    return ResidualBlock(**parts)


def _stages(config, state):
    dim = state["head.weight"].shape[1]
    model = sglformer.sglformer(
        len(state["head.weight"]),
        config["T"],
        depth=_depth(state, "blocks."),
        dim=dim,
        num_heads=config["num_heads"],
        mlp_ratio=len(state["blocks.0.mlp1.mlp1.bn.weight"]) / dim,
        in_channels=state["stem.conv.conv3x3.weight"].shape[1],
        image_size=(config["img_size_h"], config["img_size_w"]),
        variant=config["variant"],
    )
    return _loaded(model, state)


def _imagenet(config, state):
    dim = state["head.weight"].shape[1]
    model = sglformer.sglformer_imagenet(
        len(state["head.weight"]),
        config["T"],
        depth=_depth(state, "blocks.") + 2,
        dim=dim,
        num_heads=config["num_heads"],
        mlp_ratio=len(state["blocks.0.mlp.fc1_bn.weight"]) / dim,
        in_channels=state["patch_embed.proj_conv.weight"].shape[1],
        variant=config["variant"],
        batch_mixing=config.get("N", 1) > 1,
    )
    return _loaded(model, state)


def _depth(state, beginning):
    return len({name.split(".")[1] for name in state if name.startswith(beginning)})


def _loaded(model, state):
    sglformer.load_published(model, state)
    return Rearranged(model, steps_first, mean_over_steps), tensors_of(model, state)
