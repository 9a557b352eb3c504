"""Training memory and time per image against T: T-RevSNN beside SpikingJelly's networks.

Bytes are counted tensor by tensor and do not depend on the machine or its load. A training step is
run on two batches; the difference, divided by the difference in images, is what one image costs,
and whatever does not grow with the batch cancels: "held" is what the forward pass leaves for the
backward pass, "peak" the most that is alive at one moment of the step. A peak grows with the batch
ever faster until activations rule everywhere, so the smaller batches of the plain peers
(1 and 2 instead of 2 and 4) are to their favour. "Whole step" is the peak of a step of 2 images
with everything that is not there before it, gradients included.
"""

from __future__ import annotations

import statistics
import time

import torch
from benchmarks.framework.record import doubling_axis, legend_below, markdown
from benchmarks.lib import peers

from sj_ext import host
from sj_ext.analysis import activation_memory

TITLE = "Training memory and time per image against T"
IMAGES = False

REFERENCE = "TRevSNN small"
SEARCH_STEPS = 4  # memopt's search runs once for each network, and its plan is used at every T


# a sample at a time: twice the convolutions, on one core of a CPU
COMPACT_STEPS = {"short": (2,), "medium": (1, 4), "full": (1, 2, 4, 8, 16)}


def cells(size: str) -> list[dict]:
    side, steps, names = 224, (1, 2, 4, 8, 16), [*peers.OURS, *peers.PEERS]
    plain_batches = [1, 2]
    if size == "short":
        # small images: with fewer of them, weights and scratch space have a part in the peak
        side, steps, names = 64, (1, 2, 4), ["TRevSNN tiny", "SEW-ResNet-18"]
        plain_batches = [2, 4]
    rows = []
    for name in names:
        for memopt in (False, True)[: 1 if name in peers.OURS or host.GENERATION == 1 else 2]:
            plain = name in peers.PEERS and not memopt
            for num_steps in steps:
                cell = {"network": name, "memopt": memopt, "T": num_steps, "side": side}
                rows.append({**cell, "batches": plain_batches if plain else [2, 4]})
        if name in peers.PEERS:
            for num_steps in COMPACT_STEPS[size]:
                cell = {"network": name, "memopt": False, "T": num_steps, "side": side}
                rows.append({**cell, "batches": [2, 4], "compact": True})
    return rows


def measure(cell: dict, context) -> dict:
    torch.manual_seed(0)
    net = build(cell, context.device)
    held, peak = {}, {}
    for batch in cell["batches"]:
        held[batch], peak[batch] = count(net, batch, cell["side"])
    small, large = cell["batches"]
    figures = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "held": (held[large] - held[small]) / (large - small),
        "peak": (peak[large] - peak[small]) / (large - small),
        "step": whole_step(net, 2, cell["side"]),
        "seconds": seconds(net, 2, cell["side"], 1 if context.size == "short" else 3) / 2,
    }
    if torch.device(context.device).type == "cuda":
        figures |= on_cuda(net, 32, cell["side"])
    host.functional.reset_net(net)
    return figures


def build(cell: dict, device: str) -> torch.nn.Module:
    name, num_steps = cell["network"], cell["T"]
    if name in peers.OURS:
        return peers.OURS[name](num_steps).to(device)
    if cell.get("compact"):
        return peers.compacted(name, num_steps, cell["side"], device)
    if cell["memopt"]:
        return peers.with_memopt(name, num_steps, cell["side"], device, SEARCH_STEPS)
    return peers.PEERS[name].build(num_steps).to(device)


def batch_of(net, batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(net.parameters()).device
    images = torch.randn(batch, 3, side, side, device=device)
    return images, torch.randint(1000, (batch,), device=device)


def count(net, batch: int, side: int) -> tuple[int, int]:
    """Held and peak of a step, where parameters have their gradients already."""
    images, target = batch_of(net, batch, side)
    value, forward = activation_memory(lambda: peers.loss(net, images, target))
    value.backward()
    del value
    _, step = activation_memory(lambda: peers.loss(net, images, target).backward())
    return forward.saved, step.peak


def whole_step(net, batch: int, side: int) -> int:
    images, target = batch_of(net, batch, side)
    net.zero_grad(set_to_none=True)
    _, step = activation_memory(lambda: peers.loss(net, images, target).backward())
    return step.peak


def seconds(net, batch: int, side: int, repeats: int) -> float:
    """Median of training steps; of processor time on a CPU, where others may be at work too."""
    images, target = batch_of(net, batch, side)
    clock = time.perf_counter if images.is_cuda else time.process_time
    times = []
    for _ in range(repeats):
        net.zero_grad(set_to_none=True)
        _synchronize(images)
        start = clock()
        peers.loss(net, images, target).backward()
        _synchronize(images)
        times.append(clock() - start)
    return statistics.median(times)


def on_cuda(net, batch: int, side: int) -> dict:
    """Bytes that the caching allocator gave out, and images per second, under AMP."""
    images, target = batch_of(net, batch, side)
    net.zero_grad(set_to_none=True)
    times = []
    for repeat in range(12):
        if repeat == 2:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda"):
            value = peers.loss(net, images, target)
        value.backward()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        del value
    allocated = torch.cuda.max_memory_allocated() - before
    return {
        "amp_allocated": allocated / batch,
        "amp_images_per_second": batch / statistics.median(times[2:]),
    }


def _synchronize(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def _name(cell: dict) -> str:
    how = ", compact" if cell.get("compact") else ", memopt" if cell["memopt"] else ""
    return cell["network"] + how


def _reference(rows: list[dict]) -> str:
    names = [_name(row["cell"]) for row in rows]
    return REFERENCE if REFERENCE in names else names[0]


def table(rows: list[dict]) -> str:
    if not rows:
        return ""
    reference = _reference(rows)
    base = {r["cell"]["T"]: r["figures"] for r in rows if _name(r["cell"]) == reference}
    header = ["network", "T", "parameters (M)", "held (MB)", "peak (MB)", "peak, x"]
    header += ["whole step (MB)", "s per image", "time, x"]
    cuda = any("amp_allocated" in row["figures"] for row in rows)
    if cuda:
        header += ["AMP: MB per image", "images/s"]
    lines = []
    for row in rows:
        cell, own = row["cell"], row["figures"]
        against = base.get(cell["T"])
        line = [_name(cell), cell["T"], f"{own['parameters'] / 1e6:.1f}"]
        line += [f"{own['held'] / 1e6:.1f}", f"{own['peak'] / 1e6:.1f}"]
        line.append(f"{own['peak'] / against['peak']:.1f}" if against else "")
        line += [f"{own['step'] / 1e6:.0f}", f"{own['seconds']:.2f}"]
        line.append(f"{own['seconds'] / against['seconds']:.2f}" if against else "")
        if cuda:
            line += [own.get("amp_allocated", 0) / 1e6, own.get("amp_images_per_second", 0.0)]
        lines.append(line)
    side = rows[0]["cell"]["side"]
    return f"{side} x {side} pixels, float32; x: over {reference} at the same T.\n\n" + markdown(
        header, lines
    )


def plot(rows: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8.6), layout="constrained")
    panels = {"held": "held, MB per image", "peak": "peak, MB per image", "seconds": "s per image"}
    axes = list(figure.subplots(2, 2).flat)
    networks = list(dict.fromkeys(row["cell"]["network"] for row in rows))
    for name in dict.fromkeys(_name(row["cell"]) for row in rows):
        own = [row for row in rows if _name(row["cell"]) == name]
        cell = own[0]["cell"]
        style = {"color": f"C{networks.index(cell['network'])}", "marker": "."}
        style["linestyle"] = ":" if cell.get("compact") else "--" if cell["memopt"] else "-"
        for ax, (key, label) in zip(axes, panels.items(), strict=False):
            unit = 1 if key == "seconds" else 1e6
            values = [row["figures"][key] / unit for row in own]
            ax.semilogy([row["cell"]["T"] for row in own], values, label=name, **style)
            doubling_axis(ax, [row["cell"]["T"] for row in rows])
            ax.set_xlabel("T")
            ax.set_ylabel(label)
    axes[3].set_axis_off()
    legend_below(figure, axes[0])
    return figure
