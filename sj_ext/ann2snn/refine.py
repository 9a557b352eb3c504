"""Calibrating a network that is converted already, by this package or by the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from .. import checks, host
from ..arguments import checked
from .corrections import Calibration
from .data import Batches
from .graph import activation_nodes, free_name, modules_called, prepare, put_submodule
from .neuron import ConversionIFNode
from .observe import sites
from .site import SpikingSite, StepGraph
from .threshold import channel_axis
from .two_spike import TwoSpikeNode

__all__ = ["refine"]

_SCALERS = tuple(
    getattr(host.ann2snn.modules, name)
    for name in ("VoltageScaler", "ChannelVoltageScaler")
    if hasattr(host.ann2snn.modules, name)
)


@checked
def refine(
    snn: nn.Module,
    calibrations: Sequence[Calibration],
    *,
    ann: nn.Module,
    calibration: Any = None,
    T: int = 32,
) -> nn.Module:
    """Run calibrations on a converted network, in place.

    In a network that the host's converter made, the host's neurons and scalers become this
    package's first, which changes no output.

    Args:
        snn: the converted network.
        calibrations: parts of :mod:`sj_ext.ann2snn.calibrate`, which run one after the other.
        ann: the trained network that ``snn`` was made from.
        calibration: data, as a recipe takes them.
        T: number of steps to run.

    Returns:
        ``snn``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: ``snn`` is not a conversion of ``ann``, or data are missing.
    """
    checks.integer("T", T, at_least=1)
    for part in calibrations:
        if not isinstance(part, Calibration):
            raise TypeError(f"calibrations must be parts of ann2snn.calibrate, got {part!r}")
    if not isinstance(snn, fx.GraphModule):
        raise TypeError(
            f"snn must be a converted network (a GraphModule), got {type(snn).__name__}"
        )
    if any(isinstance(module, TwoSpikeNode) for module in snn.modules()):
        raise ValueError("snn codes by two spikes, for which there are no calibrations")
    trained = prepare(ann)
    _adopt(snn, trained)
    _check_same(snn, trained)
    device = next((p.device for p in snn.parameters()), torch.device("cpu"))
    data = None if calibration is None else Batches(calibration, device)
    for part in calibrations:
        part.apply(snn, trained, data, T)
    host.functional.reset_net(snn)
    return snn


def _check_same(snn: nn.Module, trained: fx.GraphModule) -> None:
    names = dict(trained.named_modules())
    strange = [name for name in sites(snn) if name not in names]
    if strange:
        raise ValueError(f"ann: has no activation {strange[0]!r}, so snn was not made from it")


def _adopt(snn: fx.GraphModule, trained: fx.GraphModule) -> None:
    """Put this package's sites in the place of the host's scaler, neuron, scaler."""
    found = [
        node
        for node, module in modules_called(snn)
        if isinstance(module, host.neuron.IFNode) and _between_scalers(snn, node)
    ]
    if not found:
        return
    names = list(activation_nodes(trained))
    if len(names) != len(found):
        raise ValueError(
            f"ann: has {len(names)} activations and snn {len(found)} neurons, so that it was not "
            f"made from it"
        )
    has_steps = any(isinstance(m, host.base.StepModule) for m in _stateless(snn))
    steps = None if has_steps else StepGraph(snn)
    for name, node in zip(names, found, strict=True):
        own = free_name(snn, name)
        axis = channel_axis(trained, name)
        put_submodule(snn, own, _site_of(snn, node, axis))
        _exchange(snn, node, own, steps)
    snn.graph.lint()
    snn.delete_all_unused_submodules()
    snn.recompile()
    host.structure_changed(snn)


def _site_of(snn: fx.GraphModule, node: Any, axis: int) -> SpikingSite:
    old: Any = snn.get_submodule(node.target)
    scale: Any = snn.get_submodule(next(iter(node.users)).target).scale
    scale = scale.reshape(-1) if scale.dim() == 0 or axis == -1 else scale.reshape(-1, 1, 1)
    new = ConversionIFNode(
        reset="soft" if old.v_reset is None else "hard",
        surrogate_function=old.surrogate_function,
        v_init=0.5 if type(old).__name__ == "HalfThresholdIFNode" else 0.0,
    )
    return SpikingSite(scale, new).to(scale.device, scale.dtype)


def _exchange(snn: fx.GraphModule, node: Any, own: str, steps: StepGraph | None) -> None:
    first, last = node.args[0], next(iter(node.users))
    parts = [f"{own}.{part}" for part in ("scaler0", "if_node", "scaler1")]
    with snn.graph.inserting_before(first):
        value = first.args[0]
        if steps is None:
            for part in parts:
                value = snn.graph.call_module(part, (value,))
        else:
            value = steps.through(value, parts)
    last.replace_all_uses_with(value)
    for dead in (last, node, first):
        snn.graph.erase_node(dead)


def _between_scalers(snn: fx.GraphModule, node: fx.Node) -> bool:
    after = list(node.users)
    before: Any = node.args[0]
    return (
        len(after) == 1
        and isinstance(before, fx.Node)
        and all(
            n.op == "call_module" and isinstance(snn.get_submodule(str(n.target)), _SCALERS)
            for n in (before, after[0])
        )
    )


def _stateless(snn: nn.Module) -> list[nn.Module]:
    return [m for m in snn.modules() if not isinstance(m, (host.base.MemoryModule, *_SCALERS))]
