"""What stands where an activation stood: scaler, neuron, scaler; and how a graph gets its steps.

The graph runs its stateless parts on ``[T * N, *]`` in step mode ``'m'``, and splits time off only
for what has a memory. So whatever runs on a batch runs on a sequence, on both hosts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from .. import checks, host
from ..arguments import checked
from .graph import free_name, put_submodule

__all__ = ["CountMaxPool", "Scaler", "SpikingSite"]


@checked
class Scaler(nn.Module):
    """Multiplies by a constant: one for the layer, one per channel, or one per neuron.

    Args:
        scale: a tensor that broadcasts to ``[N, *]`` from the right, such as ``[1]`` or
            ``[C, 1, 1]``.

    Shapes:
        ``[N, *]`` or ``[T, N, *]``, and the same out.

    Raises:
        ValueError: ``scale`` is not finite and above 0 everywhere.
    """

    scale: torch.Tensor

    def __init__(self, scale: torch.Tensor):
        super().__init__()
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise ValueError(f"scale must be finite and above 0, got {scale}")
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` times the scale."""
        return x * self.scale

    def extra_repr(self) -> str:
        if self.scale.numel() == 1:
            return f"{self.scale.item():.4g}"
        return f"{list(self.scale.shape)} in [{self.scale.min():.4g}, {self.scale.max():.4g}]"


@checked
class SpikingSite(nn.Module):
    r"""What takes an activation's place: :math:`\theta \cdot \mathrm{neuron}(g z / \theta)`.

    Its three parts are called by the graph one after the other, as in the networks that the host
    makes; this module holds them together.

    Args:
        threshold: :math:`\theta`, in units of the activation, as :class:`Scaler` takes it.
        if_node: a neuron of threshold 1.
        bound: largest value of the activation that stood here, or ``None``.

    Shapes:
        ``[N, *]`` or ``[T, N, *]``, and the same out.

    Raises:
        ValueError: ``threshold`` is not finite and above 0 everywhere.
    """

    scaler0: Scaler
    if_node: Any
    scaler1: Scaler

    def __init__(self, threshold: torch.Tensor, if_node: nn.Module, bound: float | None = None):
        super().__init__()
        self.scaler0 = Scaler(1.0 / threshold)
        self.if_node = if_node
        self.scaler1 = Scaler(threshold)
        self.bound = bound

    @property
    def threshold(self) -> torch.Tensor:
        """The threshold in units of the activation."""
        return self.scaler1.scale

    @property
    def gain(self) -> torch.Tensor:
        """What the input current is multiplied by, 1 unless a calibration raised it."""
        return self.scaler0.scale * self.scaler1.scale

    def set_threshold(self, threshold: torch.Tensor) -> None:
        """Another threshold, with the gain as it was."""
        like = self.scaler1.scale
        gain = self.gain
        threshold = threshold.to(like)
        self.scaler0.scale = gain / threshold
        self.scaler1.scale = threshold.clone()

    def set_gain(self, gain: torch.Tensor | float) -> None:
        """Another gain, with the threshold as it is."""
        self.scaler0.scale = gain / self.scaler1.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The three parts in a row."""
        y: torch.Tensor = self.scaler1(self.if_node(self.scaler0(x)))
        return y


@checked
class CountMaxPool(host.base.MemoryModule):
    r"""Max pooling of rates, not of spikes: a window passes on what its most active input sends.

    .. math::
        C[t] = C[t-1] + X[t], \qquad Y[t] = \mathrm{pool}(C[t]) - \mathrm{pool}(C[t-1])

    The mean output over any number of steps is the pooled mean input, without error.

    Args:
        pool: the max pooling of one step.
        step_mode: ``'s'`` or ``'m'``.

    Shapes:
        ``[N, C, *]`` or ``[T, N, C, *]``, pooled in the last axes.

    Raises:
        TypeError: ``pool`` is no module.

    Source: the gate by counts of Hu et al., "Spiking Deep Residual Networks", TNNLS 2021.
    """

    count: torch.Tensor | None
    sent: torch.Tensor | None

    def __init__(self, pool: nn.Module, step_mode: str = "s"):
        super().__init__()
        self.pool: nn.Module = checks.module("pool", pool)
        self.step_mode = step_mode
        self.register_memory("count", None)
        self.register_memory("sent", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step, or a sequence in step mode ``'m'``."""
        if self.step_mode == "s":
            return self._sequence(x.unsqueeze(0))[0]
        return self._sequence(x)

    def _sequence(self, x_seq: torch.Tensor) -> torch.Tensor:
        counts = x_seq.cumsum(0)
        if self.count is not None:
            counts = counts + self.count
        pooled = self.pool(counts.flatten(0, 1)).unflatten(0, counts.shape[:2])
        # before the first step every count is 0, and so is the largest
        first = torch.zeros_like(pooled[:1]) if self.sent is None else self.sent.unsqueeze(0)
        self.count, self.sent = counts[-1], pooled[-1]
        return pooled - torch.cat((first, pooled[:-1]))


class _Steps(nn.Module, host.base.StepModule):
    """The number of steps of an input; ``None`` in step mode ``'s'``."""

    def __init__(self) -> None:
        super().__init__()
        self.step_mode = "s"

    def forward(self, x: torch.Tensor) -> int | None:
        return None if self.step_mode == "s" else x.shape[0]


class _Merge(nn.Module):
    """``[T, N, *]`` to ``[T * N, *]``."""

    def forward(self, x: torch.Tensor, steps: int | None) -> torch.Tensor:
        return x if steps is None else x.flatten(0, 1)


class _Split(nn.Module):
    """``[T * N, *]`` to ``[T, N, *]``."""

    def forward(self, x: torch.Tensor, steps: int | None) -> torch.Tensor:
        return x if steps is None else x.unflatten(0, (steps, -1))


class StepGraph:
    """Puts time into the graph of a network of single steps.

    Args:
        graph: the graph, which is changed in place.
    """

    def __init__(self, graph: fx.GraphModule):
        self.module, self.graph = graph, graph.graph
        self.place = free_name(graph, "steps")
        for name, part in (("count", _Steps()), ("merge", _Merge()), ("split", _Split())):
            put_submodule(graph, f"{self.place}.{name}", part)
        self.steps = self._enter()
        self._leave()

    def put(self, node: fx.Node, names: list[str]) -> None:
        """Put modules that have a memory in the place of ``node``, one after the other."""
        source = node.args[0] if node.args else node.kwargs["input"]
        with self.graph.inserting_before(node):
            value = self.through(source, names)
        node.replace_all_uses_with(value)
        self.graph.erase_node(node)

    def through(self, value: Any, names: list[str]) -> fx.Node:
        """Calls of modules that have a memory, with time split off before and merged after."""
        value = self._call("split", value)
        for name in names:
            value = self.graph.call_module(name, (value,))
        return self._call("merge", value)

    def _call(self, what: str, value: Any) -> fx.Node:
        return self.graph.call_module(f"{self.place}.{what}", (value, self.steps))

    def _enter(self) -> fx.Node:
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        inputs = [node for node in placeholders if node.users]  # not fixed arguments
        if not inputs:
            raise ValueError("net takes no input")
        last = placeholders[-1]
        with self.graph.inserting_after(last):
            steps = self.graph.call_module(f"{self.place}.count", (inputs[0],))
        self.steps = steps
        after = steps
        for node in inputs:
            users = [user for user in node.users if user is not steps]
            with self.graph.inserting_after(after):
                after = self._call("merge", node)
            for user in users:
                user.replace_input_with(node, after)
        return steps

    def _leave(self) -> None:
        output = next(node for node in self.graph.nodes if node.op == "output")
        with self.graph.inserting_before(output):
            output.args = fx.map_arg(output.args, lambda node: self._call("split", node))
