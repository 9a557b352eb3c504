"""What compact found: a table of segments, with bytes before and after, and operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .neurons import needs_input, recorded_window
from .streams import Trunk
from .trace import Found, segment_of

__all__ = ["Compaction", "SegmentRow"]


@dataclass(frozen=True)
class SegmentRow:
    """One segment on the example.

    Attributes:
        modules: names of its modules, in the order in which they run.
        input: how its input is held: ``'1 bit'`` to ``'8 bits'``, ``'as it is'``, or ``'nothing'``
            where the bits of its first neuron are enough.
        before: bytes that plain autograd would hold at least: the input of each module.
        after: bytes that are held.
        macs: how often its weights are applied, over plain training.
    """

    modules: tuple[str, ...]
    input: str
    before: int
    after: int
    macs: float


@dataclass(frozen=True)
class Compaction:
    """What :func:`~sj_ext.memory.compact` found in a network; it prints as a table.

    Attributes:
        segments: names of the modules of each segment.
        left_out: why a module that could have been in a segment is in none, by its name.
        rows: figures of each segment on the example; none without one.
        slices: into how many slices the batch is cut, at most.
        keep: ``'bits'``, or ``'inputs'`` where inputs of norms and neurons are held as well.
        peak: bytes that a training step needs at its peak, counted where a budget was given.
        trunks: residual blocks whose stream is one function.
    """

    segments: list[list[str]]
    left_out: dict[str, str] = field(default_factory=dict)
    rows: tuple[SegmentRow, ...] = ()
    slices: int = 1
    peak: int | None = None
    trunks: tuple[Trunk, ...] = ()
    keep: str = "bits"

    @classmethod
    def of(cls, model: nn.Module, found: Found, slices: int, keep: str) -> Compaction:
        """The record of what an example run found."""
        rows = tuple(_row(model, names, found.calls, slices, keep) for names in found.segments)
        trunks = tuple(found.trunks)
        return cls(found.segments, found.left_out, rows, slices, trunks=trunks, keep=keep)

    def __str__(self) -> str:
        lines = [f"{len(self.segments)} segments, the batch in {self.slices} slices"]
        if self.keep == "inputs":
            lines[0] += ", with the inputs of norms and neurons"
        if self.peak is not None:
            lines.append(f"{self.peak:,d} bytes at the peak of a training step")
        if self.rows:
            lines.append(f"{'before':>12} {'after':>12}  {'MACs':>5}  input     modules")
        for row in self.rows:
            lines.append(
                f"{row.before:12,d} {row.after:12,d} {row.macs:6.2f}  {row.input:9s} "
                f"{' > '.join(row.modules)}"
            )
        if self.rows:
            before, after = sum(r.before for r in self.rows), sum(r.after for r in self.rows)
            lines.append(f"{before:12,d} {after:12,d}         bytes in all, on the example")
        for trunk in self.trunks:
            first, last = trunk.segments[0][0], trunk.segments[-1][-1]
            lines.append(f"one function: {len(trunk.blocks)} blocks from {first} to {last}")
        lines += [f"as it is: {name} ({why})" for name, why in self.left_out.items()]
        return "\n".join(lines)


def _row(
    model: nn.Module, names: Sequence[str], calls: Mapping[str, Any], slices: int, keep: str
) -> SegmentRow:
    segment = segment_of(model, names)
    first = calls[names[0]]
    before = sum(calls[name].shape.numel() * calls[name].itemsize for name in names)
    after = 0
    for name in names:
        module: Any = model.get_submodule(name)
        if any(step.kind == "neuron" and step.module is module for step in segment.steps):
            bits = 1 if recorded_window(module) is None else 2
            after += calls[name].shape.numel() * bits // 8
    lead = segment.steps[0]
    if lead.kind == "neuron" and not needs_input(lead.module):
        held = "nothing"
    elif first.planes is None:
        held = "as it is"
        after += first.shape.numel() * first.itemsize
    else:
        held = f"{first.planes} bit" + "s" * (first.planes > 1)
        after += first.shape.numel() * first.planes // 8
    if keep == "inputs":  # of what its weights give, what goes out is not held
        inside = names[:-1] if segment.steps[-1].linear else names
        after += sum(calls[name].products for name in inside)
    linear = any(step.linear for step in segment.steps)
    twice = slices > 1 and any(step.kind == "norm" for step in segment.steps)
    again = 1.0 if keep == "inputs" else 2.0 if twice else 4 / 3
    macs = again if linear else 0.0
    return SegmentRow(tuple(names), held, before, after, macs)
