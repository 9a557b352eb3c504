"""What happened while pruning: a table, TensorBoard scalars and plots."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .account import Account
    from .stages import Stages

__all__ = ["History", "aligned", "overview", "plan_table"]


def aligned(lines: Sequence[Sequence[Any]]) -> str:
    """Cells as text, every column as wide as its widest cell; the first column stands left."""
    cells = [[f"{v:.5g}" if isinstance(v, float) else str(v) for v in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def overview(pruner: Any, account: Account, stages: Stages) -> str:
    """The state of a pruner: its place in the schedule, its budgets, and what each layer keeps."""
    number = min(stages.number + 1, len(stages.schedule.stages))
    head = (
        f"{type(pruner).__name__}: {stages.phase}, step {pruner.steps_done} of "
        f"{stages.schedule.steps}, stage {number} of {len(stages.schedule.stages)}"
    )
    budgets: list[list[Any]] = [["resource", "now", "level", "budget"]]
    levels = stages.levels()
    for i, res in enumerate(account.resources):
        ready = all(each.ready for each in account.resources)
        now = account.values()[i] if ready else "not measured"
        given = stages.targets[i].given
        budgets.append([res.name, now, levels[i], given])
    layers: list[list[Any]] = [["layer", "weights", "kept", "share", ""]]
    kept = account.kept()
    for layer, left in zip(account.layers, kept, strict=True):
        note = "" if layer.pruned else "left dense"
        layers.append([layer.name, layer.weights, left, left / layer.weights, note])
    layers.append(["all", account.total, sum(kept), account.density, ""])
    return f"{head}\n\n{aligned(budgets)}\n\n{aligned(layers)}"


def plan_table(account: Account, stages: Stages) -> str:
    """The stages with their levels, and what each layer costs: of the dense network, and at least.

    Resources that are not measured yet are left out.
    """
    names = [res.name for res in account.resources]
    lines: list[list[Any]] = [["stage", *names, "compress", "fine-tune", "steps so far"]]
    done, place = 0, (stages.number, stages.step)
    for number, stage in enumerate(stages.schedule.stages):
        stages.number = number
        done += stage.compress_steps + stage.finetune_steps
        lines.append(
            [number + 1, *stages.levels(), stage.compress_steps, stage.finetune_steps, done]
        )
    stages.number, stages.step = place
    known = [res for res in account.resources if res.ready]
    titles = [f"{res.name} {what}" for res in known for what in ("dense", "least")]
    layers: list[list[Any]] = [["layer", "weights", *titles, ""]]
    least = account.kept(account.units.most)
    for layer, left in zip(account.layers, least, strict=True):
        costs = []
        for res in known:
            total = res.total()
            costs += [res.cost(layer, 1.0) / total, res.cost(layer, left / layer.weights) / total]
        layers.append([layer.name, layer.weights, *costs, "" if layer.pruned else "left dense"])
    shares = account.left(account.units.most)
    for name in dict.fromkeys(name for res in known for name in res.products()):
        dense = [res.products().get(name, 0.0) / res.total() for res in known]
        costs = [v for cost in dense for v in (cost, cost * shares.get(name, 1.0))]
        layers.append([name or "(network)", "", *costs, "products of activations"])
    both = [v for res in known for v in (1.0, res(least, shares))]
    layers.append(["all", account.total, *both, ""])
    return f"{aligned(lines)}\n\n{aligned(layers)}"


@checked
class History:
    """Rows of density, resources, multipliers and kept shares over steps.

    Attributes:
        layers: names of the pruned layers.
        rows: one mapping per row: ``step``, ``stage``, ``phase``, ``density``, ``resource/NAME``,
            the multipliers, and ``kept/LAYER``.
    """

    def __init__(self, layers: Sequence[str]):
        self.layers = list(layers)
        self.rows: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any], kept: Mapping[str, float]) -> None:
        """Append a row."""
        self.rows.append({**row, **{f"kept/{name}": share for name, share in kept.items()}})

    def write_last(self, writer: Any) -> None:
        """Give the numbers of the last row to ``writer.add_scalar(tag, value, step)``."""
        row = self.rows[-1]
        for key, value in row.items():
            if key not in ("step", "stage", "phase"):
                writer.add_scalar(f"pruning/{key}", value, row["step"])

    def columns(self) -> list[str]:
        """Column names in the order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def table(self, columns: Sequence[str] | None = None) -> str:
        """The rows as aligned text.

        Args:
            columns: which columns; None for all but the layers' kept shares.
        """
        if columns is None:
            columns = [name for name in self.columns() if not name.startswith("kept/")]
        lines = [list(columns)]
        lines += [[row.get(name, "") for name in columns] for row in self.rows]
        return aligned(lines)

    def save_csv(self, path: str | Path) -> None:
        """Write all columns as CSV."""
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns(), restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self) -> Figure:
        """A figure: resources and density, multipliers, and kept shares per layer, over steps.

        Needs Matplotlib.

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 8), layout="constrained")
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        named = self.columns()
        multipliers = [n for n in named if n.startswith(("y", "z")) and "/" in n]
        for axes, names, label, scale in (
            (top, ["density", *(n for n in named if n.startswith("resource/"))], "share", "log"),
            (middle, multipliers, "multiplier", "linear"),
            (bottom, [f"kept/{name}" for name in self.layers], "kept share", "log"),
        ):
            for name in names:
                rows = [row for row in self.rows if name in row]
                x, y = [row["step"] for row in rows], [row[name] for row in rows]
                axes.plot(x, y, label=name.removeprefix("kept/"))
            axes.set_ylabel(label)
            axes.set_yscale(scale)
            if 0 < len(names) <= 12:
                axes.legend(fontsize="x-small")
        bottom.set_xlabel("step")
        return figure

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.rows = [dict(row) for row in state["rows"]]
