"""What a benchmark leaves behind: a JSON record that can be resumed, and its table and plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy
import torch

from sj_ext import __version__, host

SIZES = ("short", "medium", "full")


class AnotherRecord(RuntimeError):
    """The record that is there was made elsewhere, or of something else."""


@dataclass(frozen=True)
class Context:
    """What all cells of a run share.

    Args:
        size: 'short' (minutes on two cores), 'medium' (up to an hour there) or 'full' (a GPU).
        device: a PyTorch device.
        data_dir: folder with CIFAR-10; without it, images are scikit-learn's digits.
    """

    size: str = "short"
    device: str = "cpu"
    data_dir: Path | None = None


def environment(context: Context, images: bool = True) -> dict[str, str | int]:
    """Machine, versions and data: rows of one record have all of it in common.

    Args:
        context: of the run.
        images: whether the table trains on images; if not, the record names none.
    """
    card = torch.cuda.get_device_name() if context.device.startswith("cuda") else "none"
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "card": card,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "spikingjelly": host.VERSION,
        "sj_ext": __version__,
    }
    if images:
        found["images"] = "digits" if context.data_dir is None else "CIFAR-10"
    return found


def _processor() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


@dataclass
class Record:
    """The rows of one table, each ``{"cell", "figures", "seconds", "date"}``."""

    path: Path
    table: str
    size: str
    command: str
    environment: dict
    rows: list[dict] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, table: str, context: Context, images: bool = True) -> Record:
        """The record at ``path`` to go on with, or a new one.

        Raises:
            AnotherRecord: if the record there was made on another machine, with other versions or
                other data.
        """
        now = environment(context, images)
        if path.exists():
            record = cls.read(path)
            differs = {k for k in now if record.environment.get(k) != now[k]}
            if differs:
                raise AnotherRecord(
                    f"{path} was made with another {', '.join(sorted(differs))}: "
                    "move it away or choose another --output"
                )
            return record
        command = shlex.join(["python", "examples/benchmarks", *_without_folders(sys.argv[1:])])
        return cls(path, table, context.size, command, now)

    @classmethod
    def read(cls, path: Path) -> Record:
        return cls(path, **json.loads(path.read_text("utf-8")))

    def __contains__(self, cell: dict) -> bool:
        return any(row["cell"] == cell for row in self.rows)

    def sort(self, cells: list[dict]) -> None:
        """Rows in the order of the cells, whichever were measured first; unknown ones last."""
        place = {json.dumps(cell): i for i, cell in enumerate(cells)}
        self.rows.sort(key=lambda row: place.get(json.dumps(row["cell"]), len(cells)))

    def measure(self, cell: dict, figures: Callable[[], dict]) -> None:
        """Add one row and save, so that a kill loses at most the cell that was under way."""
        start = time.perf_counter()
        row = {"cell": cell, "figures": figures()}
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["date"] = datetime.date.today().isoformat()
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        content = {
            "table": self.table,
            "size": self.size,
            "command": self.command,
            "environment": self.environment,
            "rows": self.rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)

    def origin(self) -> str:
        """One line for readers: command, date, machine, versions."""
        env = self.environment
        card = "" if env["card"] == "none" else f", {env['card']}"
        dates = sorted({row["date"] for row in self.rows})
        images = f"images: {env['images']}; " if "images" in env else ""
        when = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "never"
        return (
            f"`{self.command}`, {when}; {env['processor']}, {env['cores']} cores, "
            f"{env['threads']} threads{card}; Python {env['python']}, torch {env['torch']}, "
            f"SpikingJelly {env['spikingjelly']}, sj_ext {env['sj_ext']}; {images}"
            f"{sum(row['seconds'] for row in self.rows):.0f} s in all."
        )


def _without_folders(arguments: list[str]) -> list[str]:
    """The arguments with DIR in place of where somebody keeps the data."""
    kept = list(arguments)
    for i, argument in enumerate(arguments):
        if i and arguments[i - 1] == "--data-dir":
            kept[i] = "DIR"
        elif argument.startswith("--data-dir="):
            kept[i] = "--data-dir=DIR"
    return kept


def render(table: ModuleType, record: Record, folder: Path) -> None:
    """Write the table as ``TABLE-SIZE.md`` and, where the table has one, its plot beside it."""
    stem = f"{record.table}-{record.size}"
    parts = [table.table(record.rows).strip(), record.origin()]
    if hasattr(table, "plot"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        with matplotlib.rc_context(STYLE):
            figure = table.plot(record.rows)
            figure.savefig(folder / f"{stem}.png", dpi=130, bbox_inches="tight", transparent=True)
        pyplot.close(figure)
        parts.insert(1, f"![{table.TITLE}]({stem}.png)")
    (folder / f"{stem}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


#: of plots: dark ink on nothing, which the pages' dark theme turns around
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "legend.fontsize": 11,
}


def legend_below(figure, axes, ncols: int = 2) -> None:
    """One legend for all panels, off the curves."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=ncols)


def doubling_axis(ax, values: list[int]) -> None:
    """A logarithmic x-axis that is marked where something was measured."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(set(values)), [str(value) for value in sorted(set(values))])
    ax.minorticks_off()


def markdown(header: list[str], rows: list[list[object]]) -> str:
    """A table in Markdown; floats get three significant digits."""

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *[[cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
