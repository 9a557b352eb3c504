"""Networks of SpikingJelly beside T-RevSNN, and SpikingJelly's memory optimiser at its strongest.

``memopt`` (SpikingJelly 2.x) checkpoints blocks, keeps binary inputs as bits, and then searches:
level 2 splits a checkpointed block where that lowers the peak, level 3 cuts the steps of what can
be cut in time, level 4 undoes checkpoints that do not lower the peak. On CUDA the search runs as
it is. It measures the peak with CUDA's counters and has nothing for a CPU, so there the same search
is run with the bytes that ``activation_memory`` counts; level 4 also needs CUDA's timers, and since
it only buys time, level 3 is the strongest in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.functional import sdt_cross_entropy
from sj_ext.memory import compact
from sj_ext.model import trevsnn_small, trevsnn_tiny


class Stem(nn.Sequential):
    """What comes before the blocks, as one module that can be checkpointed and split."""


@dataclass(frozen=True)
class Peer:
    """A network of SpikingJelly.

    Args:
        build: from T to the network.
        targets: names of the module classes that memopt may checkpoint.
        compress: whether a binary input is a spike train by design. Where spike trains are added
            in the residual stream, an input may be binary by chance, and bits would lose the rest.
    """

    build: Callable[[int], nn.Module]
    targets: tuple[str, ...]
    compress: bool


def _sew_resnet18(num_steps: int) -> nn.Module:
    from spikingjelly.activation_based.model.sew_resnet import sew_resnet18

    net = sew_resnet18(
        cnf="ADD", spiking_neuron=host.neuron.LIFNode, num_classes=1000, detach_reset=True
    )
    net.conv1 = Stem(net.conv1, net.bn1, net.sn1, net.maxpool)
    net.bn1 = net.sn1 = net.maxpool = nn.Identity()
    host.functional.set_step_mode(net, "m")
    return _Repeated(net, num_steps)


class _Repeated(nn.Module):
    """A network of sequences that gets a static image."""

    def __init__(self, net: nn.Module, num_steps: int):
        super().__init__()
        self.net, self.num_steps = net, num_steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.unsqueeze(0).expand(self.num_steps, *x.shape))


def _ms_resnet18(num_steps: int) -> nn.Module:
    from spikingjelly.activation_based.model.ms_resnet import ms_resnet18

    net = ms_resnet18(T=num_steps)
    net.stem = Stem(*net.stem)
    return net


def _spikformer(num_steps: int, side: int = 224) -> nn.Module:
    from spikingjelly.activation_based.model.spikformer import spikformer_s

    return spikformer_s(T=num_steps, img_size_h=side, img_size_w=side)


def _spike_driven_transformer(num_steps: int) -> nn.Module:
    from spikingjelly.activation_based.model.spike_driven_transformer import sdt_8_384

    net = sdt_8_384(T=num_steps)
    embed = net.patch_embed
    embed.stages = nn.ModuleList(Stem(*stage) for stage in embed.stages)
    embed.final_stage = Stem(*embed.final_stage)
    return net


OURS: dict[str, Callable[[int], nn.Module]] = {
    "TRevSNN small": functools.partial(trevsnn_small, 1000),
    "TRevSNN tiny": functools.partial(trevsnn_tiny, 1000),
    "TRevSNN small, as published": functools.partial(
        trevsnn_small, 1000, encode="repeat", norm="bn"
    ),
}
PEERS = {"SEW-ResNet-18": Peer(_sew_resnet18, ("BasicBlock", "Stem"), False)}
if host.GENERATION == 2:
    PEERS |= {
        "MS-ResNet-18": Peer(_ms_resnet18, ("_MSBlock", "Stem"), True),
        "Spikformer-S": Peer(_spikformer, ("SpikformerBlock", "SpikformerConv2dBNLIF"), False),
        "spike-driven transformer 8-384": Peer(_spike_driven_transformer, ("_Block", "Stem"), True),
    }


def loss(net: nn.Module, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the mean output, for logits with and without a time axis."""
    host.functional.reset_net(net)
    logits = net(images)
    if logits.dim() == 3:
        return sdt_cross_entropy(logits, target)
    return cross_entropy(logits, target)


@dataclass(frozen=True)
class Checkpointed:
    """One module that memopt checkpoints."""

    path: str
    compress: bool
    chunks: int


@functools.cache
def memopt_plan(name: str, num_steps: int, side: int, device: str) -> tuple[Checkpointed, ...]:
    """What memopt's search decides for T steps of images of ``side`` x ``side``."""
    from spikingjelly.activation_based import memopt

    peer = PEERS[name]
    net = peer.build(num_steps).to(device)
    images = torch.randn(2, 3, side, side, device=device)
    cuda = torch.device(device).type == "cuda"
    with mock.patch.object(memopt.pipeline, "_measure_peak", _counted_peak(cuda)):
        memopt.optimize_memory(
            net,
            tuple({type(m) for m in net.modules() if type(m).__name__ in peer.targets}),
            lambda current: (host.functional.reset_net(current), current(images))[1],
            level=4 if cuda else 3,
            compress=peer.compress,
            split_fn=_split,
            can_chunk=_can_chunk,
        )
    options = {
        path: memopt.pipeline._checkpoint_options(module)
        for path, module in memopt.pipeline._checkpoint_leaves(net)
    }
    return tuple(
        Checkpointed(path, o["compressor"] is not None, o["chunks"]) for path, o in options.items()
    )


def with_memopt(name: str, num_steps: int, side: int, device: str, search_steps: int) -> nn.Module:
    """The network under the plan that was found for ``search_steps`` steps.

    What is cut in time keeps the length of its chunks: twice the steps, twice the chunks.
    """
    from spikingjelly.activation_based import memopt

    net = PEERS[name].build(num_steps).to(device)
    for part in memopt_plan(name, search_steps, side, device):
        chunks = part.chunks
        if chunks > 1:  # others may have statistics over all steps
            chunks = min(num_steps, max(1, chunks * num_steps // search_steps))
        compressor = memopt.BitSpikeCompressor() if part.compress else None
        module = net.get_submodule(part.path)
        wrapped = memopt.checkpoint_module(module, compressor=compressor, chunks=chunks)
        net.set_submodule(part.path, wrapped)
    return net


def compacted(name: str, num_steps: int, side: int, device: str) -> nn.Module:
    """The network under :func:`sj_ext.memory.compact`, a sample at a time."""
    net = PEERS[name].build(num_steps).to(device)
    return compact(net, torch.randn(1, 3, side, side, device=device), slices=64)


def _counted_peak(cuda: bool) -> Callable:
    from spikingjelly.activation_based.memopt import pipeline

    if cuda:
        return pipeline._measure_peak

    def peak(net: nn.Module, example_forward: Callable) -> float:
        state = pipeline._capture_runtime(net)
        try:
            _, counted = activation_memory(
                lambda: [pipeline._execute_example(net, example_forward, backward=True), None][1]
            )
        finally:
            pipeline._restore_runtime(net, state)
        return float(counted.peak)

    return peak


def _split(module: nn.Module) -> tuple[nn.Module, ...]:
    """The parts of a module that run one after the other or side by side."""
    if isinstance(module, host.neuron.BaseNode):
        return ()
    return tuple(child for child in module.children() if not isinstance(child, nn.Identity))


def _can_chunk(module: nn.Module) -> bool:
    """Whether the steps can be computed in turn: not where statistics are over all of them."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | host.neuron.BaseNode)
