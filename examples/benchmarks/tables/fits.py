"""Does it fit? What each way to save training memory holds, needs and costs, beside plain training.

Every network is measured beside its own plain twin in the same run, at T = 4 in float32. Bytes are
counted tensor by tensor, as in the table ``memory``: the difference of two batches, per image.
"""

from __future__ import annotations

import torch
from benchmarks.framework.record import markdown
from benchmarks.lib import peers
from benchmarks.tables.memory import count, seconds, whole_step
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_ext import host
from sj_ext.memory import compact
from sj_ext.model import trevsnn_tiny
from sj_ext.model.revsnn import revsresnet37

TITLE = "Does it fit? Ways to save training memory, beside plain training"
IMAGES = False

T = 4
SEW, REV, TREV = "SEW-ResNet-18", "RevSResNet37", "T-RevSNN tiny"
PLAIN = "plain"


class Checkpointed(nn.Module):
    """A block that is run again from its input; its neurons start anew both times."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self._from_reset, x, use_reentrant=False)

    def _from_reset(self, x: torch.Tensor) -> torch.Tensor:
        host.functional.reset_net(self.block)
        return self.block(x)


def checkpointed(side: int) -> nn.Module:
    """SEW-ResNet-18 with PyTorch's checkpointing around its stem and every block."""
    net = peers.PEERS[SEW].build(T)
    names = [n for n, m in net.named_modules() if type(m).__name__ in peers.PEERS[SEW].targets]
    for name in names:
        net.set_submodule(name, Checkpointed(net.get_submodule(name)))
    return net


def compacted(slices: int):
    """SEW-ResNet-18 under compact."""

    def build(side: int) -> nn.Module:
        return compact(peers.PEERS[SEW].build(T), torch.randn(1, 3, side, side), slices=slices)

    return build


WAYS = {
    (SEW, PLAIN): lambda side: peers.PEERS[SEW].build(T),
    (SEW, "checkpointing"): checkpointed,
    (SEW, "memopt"): lambda side: peers.with_memopt(SEW, T, side, "cpu", T),
    (SEW, "compact"): compacted(1),
    (SEW, "compact, a sample at a time"): compacted(64),
    (REV, PLAIN): lambda side: revsresnet37(10, T, memory="autograd"),
    (REV, "ReversibleSequence"): lambda side: revsresnet37(10, T),
    (TREV, PLAIN): lambda side: trevsnn_tiny(1000, num_steps=T, memory="autograd"),
    (TREV, "TemporalReversible"): lambda side: trevsnn_tiny(1000, num_steps=T),
}
SIDES = {SEW: 64, REV: 32, TREV: 64}


def cells(size: str) -> list[dict]:
    rows = []
    for network, way in WAYS:
        if way == "memopt" and (host.GENERATION == 1 or size == "short"):
            continue
        if network == REV and size == "short":
            continue
        side = 32 if size == "short" else SIDES[network]
        batches = {"short": [2, 4], "medium": [4, 8], "full": [16, 32]}[size]
        rows.append({"network": network, "way": way, "side": side, "batches": batches})
    return rows


def measure(cell: dict, context) -> dict:
    torch.manual_seed(0)
    net = WAYS[cell["network"], cell["way"]](cell["side"]).to(context.device)
    small, large = cell["batches"]
    counted = {batch: count(net, batch, cell["side"]) for batch in (small, large)}
    held, peak = (
        (b - a) / (large - small) for a, b in zip(counted[small], counted[large], strict=True)
    )
    return {
        "held": held,
        "peak": peak,
        "step": whole_step(net, large, cell["side"]),
        "seconds": seconds(net, small, cell["side"], 3) / small,
    }


def table(rows: list[dict]) -> str:
    if not rows:
        return ""
    plain = {r["cell"]["network"]: r["figures"] for r in rows if r["cell"]["way"] == PLAIN}
    header = ["network", "way", "held (MB)", "x plain", "peak (MB)", "x plain"]
    header += ["whole step (MB)", "time, x plain"]
    lines = []
    for row in rows:
        cell, own = row["cell"], row["figures"]
        base = plain[cell["network"]]
        line = [f"{cell['network']}, {cell['side']} px", cell["way"]]
        for key in ("held", "peak"):
            line += [f"{own[key] / 1e6:.2f}", f"1/{base[key] / own[key]:.1f}"]
        line += [f"{own['step'] / 1e6:.0f} at {cell['batches'][1]}"]
        lines.append([*line, f"{own['seconds'] / base['seconds']:.2f}"])
    return f"T = {T}, float32, per image; whole step: its peak at a batch.\n\n" + markdown(
        header, lines
    )
