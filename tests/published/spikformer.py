"""Spikformer-CML from recordings of its program."""

from __future__ import annotations

from sj_ext.layer import SSA, ResidualBlock, SpikingMLP
from sj_ext.model.transformer import spikformer

from .parts import Rearranged, loaded_part, mean_over_steps, steps_first, tensors_of


def build(stem, config, state):
    names = spikformer.NAMES["cml" if "block1_conv.weight" in _short(state) else "original"]
    if "head.weight" in state:
        return _model(config, state)
    if "rpe_conv.weight" in state:
        first = next(iter(state.values()))
        part = spikformer.spikformer_stem(
            8 * first.shape[0],
            in_channels=first.shape[1],
            patch_size=config.get("patch_size", 4),
            downsampling=_order(state),
        )
        tensors = loaded_part(part, state, names, "patch_embed.", "stem.")
        return Rearranged(part, after=_tokens), tensors
    if any(name.startswith("attn.") for name in state):
        part, inner = _block(config, state), ""
    elif any(name.startswith("q_") for name in state):
        dim = state["q_bn.weight"].numel()
        bias = "q_linear.bias" in state or "q_conv.bias" in state
        part = SSA(dim, config["num_heads"], shortcut="spike", qkv_bias=bias)
        inner = "attn."
    else:
        part = SpikingMLP(
            state["fc2_bn.weight"].numel(), state["fc1_bn.weight"].numel(), shortcut="spike"
        )
        inner = "mlp."
    tensors = loaded_part(part, state, names, f"block.0.{inner}", f"body.0.{inner}")
    return Rearranged(part, _map, _tokens), tensors


def _short(state):
    return {name.removeprefix("patch_embed.") for name in state}


def _order(state):
    return "cml" if "block1_conv.weight" in _short(state) else "original"


def _tokens(y):
    """``[T, N, C, H, W]`` to ``[T, N, L, C]``."""
    return y.flatten(-2).mT


def _map(x):
    """``[T, N, L, C]`` to a map of one row."""
    return x.mT.unsqueeze(-2) if x.dim() == 4 else x


def _block(config, state):
    dim, hidden = state["mlp.fc2_bn.weight"].numel(), state["mlp.fc1_bn.weight"].numel()
    return ResidualBlock(
        attn=SSA(
            dim, config["num_heads"], shortcut="spike", qkv_bias="attn.q_linear.bias" in state
        ),
        mlp=SpikingMLP(dim, hidden, shortcut="spike"),
    )


def _model(config, state):
    dim = state["head.weight"].shape[1]
    first = next(v for n, v in state.items() if n.startswith("patch_embed."))
    model = spikformer.spikformer(
        len(state["head.weight"]),
        config["T"],
        depth=len({name.split(".")[1] for name in state if name.startswith("block.")}),
        dim=dim,
        num_heads=config["num_heads"],
        mlp_ratio=state["block.0.mlp.fc1_bn.weight"].numel() / dim,
        in_channels=first.shape[1],
        patch_size=config.get("patch_size", 4),
        downsampling=_order(state),
        qkv_bias=any(name.endswith(("q_linear.bias", "q_conv.bias")) for name in state),
    )
    spikformer.load_published(model, state)
    return Rearranged(model, steps_first, mean_over_steps), tensors_of(model, state)
