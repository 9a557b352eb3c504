r"""Networks as graphs of NIR, the Neuromorphic Intermediate Representation.

NIR says a neuron by its differential equation, which Euler steps of ``dt`` turn into SpikingJelly's
recurrences. It has no word for an initial potential, and none for a soft reset; what is lost is
refused until it is named in ``lossy``, and then stands in the metadata of the neuron.

Source of the representation: Pedersen et al., "Neuromorphic Intermediate Representation: A Unified
Instruction Set for Interoperable Brain-Inspired Computing", Nature Communications 2024.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

import numpy
import torch
from torch import nn

from . import checks, host
from .neuron import TurnOnNode
from .neuron.initial_potential import LearnableInitialPotential
from .observe import at_rest, watching

__all__ = ["export_to_nir"]

_LOSSES = ("initial_potential", "soft_reset")


def export_to_nir(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    dt: float = 1e-4,
    lossy: Collection[str] = (),
) -> Any:
    r"""``model`` as a ``nir.NIRGraph``, which ``nir.write`` puts into a file; on both generations.

    Linear layers, convolutions, average pooling, flattening, the host's IF, LIF and parametric LIF
    neurons, those with a learned initial potential, and turn-on neurons, in any order, with sums.

    - An initial potential :math:`V[0]` is in the metadata of its neuron as ``v_init``, and as
      ``first_input``: what, added to the input of the first step, starts a neuron from its reset
      potential as well. A reader that knows neither starts elsewhere.
    - A turn-on neuron is a leaky integrator ``nir.LI`` (``nir.I`` for a decay of 1) and a
      ``nir.Threshold``, whose name ends in ``_threshold``. NIR fires above the threshold, a turn-on
      neuron at it too, so the threshold is the next lower number of float32. Nothing is lost.

    Args:
        model: the network. It is left as it was.
        example_input: one input, which tells the shapes, as the network takes it.
        dt: seconds that a time step lasts.
        lossy: what may be lost: ``'initial_potential'``, ``'soft_reset'`` (a neuron whose threshold
            is subtracted; the metadata say ``reset``: ``'soft'``).

    Raises:
        TypeError: ``model`` is not a module, ``example_input`` no tensor, ``dt`` no number, or
            ``lossy`` no collection of names.
        ValueError: a module has no counterpart in NIR, a loss is not in ``lossy``, or ``dt`` is not
            above 0.
        RuntimeError: NIRTorch is not installed.
    """
    checks.module("model", model)
    checks.tensor("example_input", example_input)
    dt = checks.number("dt", dt, above=0)
    if isinstance(lossy, str) or not isinstance(lossy, Collection):
        raise TypeError(f"lossy must be a collection of {_LOSSES}, got {checks.shown(lossy)}")
    for loss in lossy:
        checks.choice("lossy", loss, _LOSSES)
    nir, nirtorch = _packages()
    leaves = dict(_leaves(model))
    writer = _Writer(nir, dt, frozenset(lossy), _input_shapes(model, leaves, example_input))
    kinds: dict[type, list[str]] = {}
    for path, leaf in leaves.items():
        kinds.setdefault(type(leaf), []).append(path)
    writer.paths = {id(leaf): path for path, leaf in leaves.items()}
    graph = nirtorch.torch_to_nir(model, dict.fromkeys(kinds, writer.write), type_check=False)
    return writer.finished(graph)


def _packages() -> tuple[Any, Any]:
    try:
        return importlib.import_module("nir"), importlib.import_module("nirtorch")
    except ImportError as error:
        raise RuntimeError(f"NIR needs NIRTorch, pip install nirtorch: {error}") from error


def _leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that become nodes, by path."""
    if _writer_of(module) is not None:
        yield path, module
    elif next(module.children(), None) is None or hasattr(module, "surrogate_function"):
        hint = ": fold it into the layer before it" if "BatchNorm" in type(module).__name__ else ""
        raise ValueError(
            f"model: {path or 'it'} is a {type(module).__name__}, which NIR has no node for{hint}"
        )
    else:
        for name, child in module.named_children():
            yield from _leaves(child, f"{path}.{name}" if path else name)


def _input_shapes(
    model: nn.Module, leaves: dict[str, nn.Module], example_input: torch.Tensor
) -> dict[int, torch.Size]:
    """Shapes of the modules' inputs, without batch and steps."""
    shapes: dict[int, torch.Size] = {}

    def see(path: str, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        steps = getattr(module, "step_mode", "s") == "m"
        shapes[id(module)] = x.shape[2 if steps else 1 :]

    with at_rest(model), watching(leaves, see):
        model(example_input)
    return shapes


def _writer_of(module: nn.Module) -> Callable[[_Writer, Any], Any] | None:
    """The method that writes a module as a node, if there is one."""
    kind = type(module)
    if isinstance(module, LearnableInitialPotential):
        kind = kind.__bases__[1]
    node, layer = host.neuron, host.layer
    if kind is node.IFNode:
        return _Writer.integrate_and_fire
    if kind in (node.LIFNode, node.ParametricLIFNode):
        return _Writer.leaky
    if kind is TurnOnNode:
        return _Writer.turn_on
    if kind in (nn.Linear, layer.Linear):
        return _Writer.linear
    if kind in (nn.Conv1d, layer.Conv1d, nn.Conv2d, layer.Conv2d):
        return _Writer.convolution
    if kind in (nn.AvgPool2d, layer.AvgPool2d):
        return _Writer.average
    if kind in (nn.Flatten, layer.Flatten):
        return _Writer.flatten
    return None


class _Writer:
    """Writes modules as nodes of NIR."""

    def __init__(self, nir: Any, dt: float, lossy: frozenset[str], shapes: dict[int, torch.Size]):
        self.nir, self.dt, self.lossy, self.shapes = nir, dt, lossy, shapes
        self.paths: dict[int, str] = {}
        self.thresholds: dict[int, Any] = {}
        self.inputs: dict[int, torch.Size] = {}

    def write(self, module: nn.Module) -> Any:
        node = cast("Callable[[_Writer, Any], Any]", _writer_of(module))(self, module)
        self.inputs[id(node)] = self.shapes[id(module)]
        return node

    def finished(self, graph: Any) -> Any:
        """The graph with the input's shape, and a threshold behind each turn-on neuron."""
        nodes, edges = dict(graph.nodes), []
        for source, target in graph.edges:
            if isinstance(nodes[source], self.nir.Input) and id(nodes[target]) in self.inputs:
                shape = numpy.array(self.inputs[id(nodes[target])])
                nodes[source] = self.nir.Input(input_type={"input": shape})
        behind = {n: f"{n}_threshold" for n, node in nodes.items() if id(node) in self.thresholds}
        for name, own in behind.items():
            nodes[own] = self.thresholds[id(nodes[name])]
            edges.append((name, own))
        edges += [(behind.get(source, source), target) for source, target in graph.edges]
        return self.nir.NIRGraph(nodes=nodes, edges=edges, type_check=True)

    # -- neurons

    def integrate_and_fire(self, module: Any) -> Any:
        at = self._reset(module)
        return self.nir.IF(
            r=self._full(module, 1 / self.dt),
            v_threshold=self._full(module, module.v_threshold),
            v_reset=self._full(module, at),
            metadata=self._metadata(module, at, 1.0),
        )

    def leaky(self, module: Any) -> Any:
        at = self._reset(module)
        tau = module.tau if hasattr(module, "tau") else 1 / module.w.sigmoid().item()
        left = (tau - 1) if module.decay_input else (1 - 1 / tau)
        return self.nir.LIF(
            tau=self._full(module, tau * self.dt),
            r=self._full(module, 1.0 if module.decay_input else tau),
            v_leak=self._full(module, at),
            v_threshold=self._full(module, module.v_threshold),
            v_reset=self._full(module, at),
            metadata=self._metadata(module, at, left),
        )

    def turn_on(self, module: TurnOnNode) -> Any:
        shape = self.shapes[id(module)]
        decay = module.effective_decay.detach().double().cpu()
        if decay.numel() > 1:
            decay = decay.view(-1, *[1] * (len(shape) - 1))
        decay = decay.expand(shape)
        if bool((decay > 1).any()):
            raise ValueError(
                f"model: the decay of {self.paths[id(module)]} is {float(decay.max()):g}, and a "
                "leaky integrator of NIR has none above 1"
            )
        if bool((decay == 1).all()):
            node = self.nir.I(r=self._full(module, 1 / self.dt))
        else:
            leak = (1 - decay).clamp(min=torch.finfo(torch.float32).eps)
            node = self.nir.LI(
                tau=(self.dt / leak).numpy(), r=(1 / leak).numpy(), v_leak=numpy.zeros(shape)
            )
        lower = numpy.nextafter(numpy.float32(module.v_threshold), numpy.float32(-numpy.inf))
        self.thresholds[id(node)] = self.nir.Threshold(threshold=self._full(module, float(lower)))
        return node

    def _reset(self, module: Any) -> float:
        if module.v_reset is not None:
            return float(module.v_reset)
        self._lose(module, "soft_reset", "subtracts its threshold, and NIR's neurons are set back")
        return 0.0

    def _metadata(self, module: Any, at: float, left: float) -> dict[str, Any]:
        """What NIR has no field for; ``left`` is what the first step leaves of a difference."""
        found: dict[str, Any] = {} if module.v_reset is not None else {"reset": "soft"}
        if isinstance(module, LearnableInitialPotential):
            self._lose(module, "initial_potential", "starts from a learned potential")
            shape = self.shapes[id(module)]
            with torch.no_grad():
                v = module.initial_potential(module.theta.new_empty(1, *shape))
            start = v.detach().double().cpu().expand(1, *shape)[0].numpy().copy()
            found |= {"v_init": start, "first_input": left * (start - at)}
        return found

    def _lose(self, module: nn.Module, loss: str, why: str) -> None:
        if loss not in self.lossy:
            raise ValueError(
                f"model: {self.paths[id(module)]} {why}, which NIR cannot say; give "
                f"lossy=({loss!r},) to keep it in the metadata only"
            )

    def _full(self, module: nn.Module, value: float) -> Any:
        return numpy.full(tuple(self.shapes[id(module)]), float(value))

    # -- layers

    def linear(self, module: nn.Linear) -> Any:
        if module.bias is None:
            return self.nir.Linear(_array(module.weight))
        return self.nir.Affine(_array(module.weight), _array(module.bias))

    def convolution(self, module: Any) -> Any:
        if module.padding_mode != "zeros":
            raise ValueError(
                f"model: {self.paths[id(module)]} pads with {module.padding_mode!r}, and NIR with "
                "zeros only"
            )
        flat = module.weight.dim() == 3
        bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
        size = tuple(self.shapes[id(module)][1:])

        def one(value: Any) -> Any:
            return value[0] if flat and not isinstance(value, str) else value

        return (self.nir.Conv1d if flat else self.nir.Conv2d)(
            input_shape=size[0] if flat else size,
            weight=_array(module.weight),
            stride=one(module.stride),
            padding=one(module.padding),
            dilation=one(module.dilation),
            groups=module.groups,
            bias=_array(bias),
        )

    def average(self, module: Any) -> Any:
        padded = bool(numpy.any(module.padding)) and not module.count_include_pad
        if module.ceil_mode or padded or module.divisor_override is not None:
            raise ValueError(
                f"model: {self.paths[id(module)]} averages with ceil_mode, without its padding or "
                "with a divisor of its own, which NIR cannot say"
            )
        sizes = (module.kernel_size, module.stride, module.padding)
        kernel, stride, padding = (numpy.array(torch.nn.modules.utils._pair(z)) for z in sizes)
        return self.nir.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding)

    def flatten(self, module: Any) -> Any:
        shape = self.shapes[id(module)]
        first = module.start_dim - 1 if module.start_dim > 0 else module.start_dim
        last = module.end_dim - 1 if module.end_dim > 0 else module.end_dim
        return self.nir.Flatten(
            input_type={"input": numpy.array(shape)}, start_dim=first, end_dim=last
        )


def _array(x: torch.Tensor) -> Any:
    return x.detach().cpu().numpy()
