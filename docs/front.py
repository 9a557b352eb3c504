"""The picture and the measured lines that README and results begin with, from committed records.

    python docs/front.py

Reads docs/results/*-medium.json, draws docs/_static/memory.png and writes the lines between the
marks ``<!-- figures -->`` and ``<!-- /figures -->`` of README.md, README.zh-CN.md and
docs/results/index.md. Nothing is measured here: run it again when a record has changed.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results"
PICTURE = DOCS / "_static" / "memory.png"
MARKS = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.S)

TRANSFORMER, OURS, RESNET = "spike-driven transformer 8-384", "TRevSNN small", "SEW-ResNet-18"
HEADER = {
    "en": ["measured", "peer", "sj_ext", "command"],
    "zh": ["测量内容", "对照", "sj_ext", "命令"],
}


class Line(NamedTuple):
    """A measured line: what, peer and ours by language, and the table that has it."""

    what: dict[str, str]
    peer: dict[str, str]
    ours: dict[str, str]
    table: str


def rows(table: str) -> list[dict]:
    """Rows of a committed record."""
    return json.loads((RESULTS / f"{table}-medium.json").read_text("utf-8"))["rows"]


def memory(network: str, num_steps: int, way: str = "plain") -> dict:
    """Figures of a network at T steps, trained plainly, by memopt or by compact."""
    for row in rows("memory"):
        cell = row["cell"]
        found = "compact" if cell.get("compact") else "memopt" if cell["memopt"] else "plain"
        if (cell["network"], cell["T"], found) == (network, num_steps, way):
            return row["figures"]
    raise LookupError(f"no row of {network}, T = {num_steps}, {way}")


def percent(values: list[float]) -> str:
    """Mean and standard error, in percent."""
    mean = 100 * statistics.mean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values) / math.sqrt(len(values)):.1f}%"


def accuracies(table: str, step: int | None = None, **cell) -> list[float]:
    """Accuracies of the rows whose cells have these entries and no others but the seed."""
    found = [row["figures"]["accuracy"] for row in rows(table) if _without_seed(row) == cell]
    return found if step is None else [accuracy[step - 1] for accuracy in found]


def _without_seed(row: dict) -> dict:
    return {key: value for key, value in row["cell"].items() if key != "seed"}


def lines() -> list[Line]:
    """The five lines."""
    return [_long_sequences(), _unchanged(), _few_steps(), _pruned(), _converted()]


def _long_sequences() -> Line:
    plain, memopt = (memory(TRANSFORMER, 16, way) for way in ("plain", "memopt"))
    ours = memory(OURS, 16)
    peaks = [f"{figures['peak'] / 1e6:,.0f}" for figures in (plain, memopt, ours)]
    times = [f"{figures['seconds']:.1f}" for figures in (plain, memopt, ours)]
    return Line(
        {
            "en": "peak memory of training, MB an image (s an image), 224 × 224, T = 16",
            "zh": "训练的峰值内存，每张图像 MB（秒），224 × 224，T = 16",
        },
        {
            "en": f"spike-driven transformer: {peaks[0]} ({times[0]}); "
            f"with memopt: {peaks[1]} ({times[1]})",
            "zh": f"spike-driven transformer：{peaks[0]}（{times[0]}）；"
            f"用 memopt：{peaks[1]}（{times[1]}）",
        },
        {
            "en": f"T-RevSNN small: **{peaks[2]}** ({times[2]})",
            "zh": f"T-RevSNN small：**{peaks[2]}**（{times[2]}）",
        },
        "memory",
    )


def _unchanged() -> Line:
    plain, memopt, ours = (memory(RESNET, 4, way) for way in ("plain", "memopt", "compact"))
    held = [f"{figures['held'] / 1e6:.1f}" for figures in (plain, memopt, ours)]
    times = [f"{figures['seconds']:.1f}" for figures in (plain, memopt, ours)]
    return Line(
        {
            "en": "held for backward, MB an image (s an image), SEW-ResNet-18 unchanged, T = 4",
            "zh": "为反向传播保留的内存，每张图像 MB（秒），SEW-ResNet-18 不改动，T = 4",
        },
        {
            "en": f"plain: {held[0]} ({times[0]}); memopt: {held[1]} ({times[1]})",
            "zh": f"普通训练：{held[0]}（{times[0]}）；memopt：{held[1]}（{times[1]}）",
        },
        {
            "en": f"`memory.compact`: **{held[2]}** ({times[2]})",
            "zh": f"`memory.compact`：**{held[2]}**（{times[2]}）",
        },
        "memory",
    )


def _few_steps() -> Line:
    plain, imp = (
        percent(accuracies("imp_accuracy", 2, neuron="IF", imp=imp, loss="LTS", epochs=15))
        for imp in (False, True)
    )
    return Line(
        {
            "en": "accuracy after 2 of 4 steps, small SEW-ResNet, CIFAR-10 at 16 × 16, LTS",
            "zh": "4 步中第 2 步停止时的准确率，小型 SEW-ResNet，16 × 16 的 CIFAR-10，LTS",
        },
        {"en": f"IF: {plain}", "zh": f"IF：{plain}"},
        {"en": f"IMP-IF: **{imp}**", "zh": f"IMP-IF：**{imp}**"},
        "imp_accuracy",
    )


def _pruned() -> Line:
    peer, ours = (
        percent(accuracies("compression", method=method, kept=0.01))
        for method in ("magnitude, iterative", "minimax, global, joint")
    )
    return Line(
        {
            "en": "accuracy with 1% of the weights, small VGG, CIFAR-10 at 16 × 16",
            "zh": "保留 1% 权重时的准确率，小型 VGG，16 × 16 的 CIFAR-10",
        },
        {"en": f"iterative magnitude: {peer}", "zh": f"迭代幅值剪枝：{peer}"},
        {"en": f"`MinimaxPruner`: **{ours}**", "zh": f"`MinimaxPruner`：**{ours}**"},
        "compression",
    )


def _converted() -> Line:
    methods = {row["cell"]["method"]: row["figures"] for row in rows("conversion")}
    ours = methods["ours: per channel, half, counted, potentials"]
    peer = methods["host: 99.9%"]
    network, before, after = (
        f"{100 * value:.1f}%"
        for value in (ours["ann"], peer["accuracy"]["4"], ours["accuracy"]["4"])
    )
    return Line(
        {
            "en": f"accuracy of a trained ANN ({network}) converted, CIFAR-10, T = 4",
            "zh": f"已训练的 ANN（{network}）转换后的准确率，CIFAR-10，T = 4",
        },
        {
            "en": f"SpikingJelly's converter: {before}",
            "zh": f"SpikingJelly 的转换器：{before}",
        },
        {"en": f"`presets.low_latency`: **{after}**", "zh": f"`presets.low_latency`：**{after}**"},
        "conversion",
    )


#: pages of the site that show a table; a repository page links the table itself
PAGES = {
    "memory": "reversibility.md",
    "imp_accuracy": "initial_potential.md",
    "compression": "compression.md",
    "conversion": "conversion.md",
}


def table(language: str, folder: str) -> str:
    """The lines as a Markdown table; ``folder`` leads from a repository page to docs/results."""
    header = HEADER[language]
    found = [header, ["---"] * len(header)]
    for line in lines():
        what, peer, ours = (part[language] for part in (line.what, line.peer, line.ours))
        target = f"{folder}{line.table}-medium.md" if folder else PAGES[line.table]
        found.append([what, peer, ours, f"[`benchmarks {line.table}`]({target})"])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in found)


def pages() -> dict[Path, str]:
    """The pages that have the lines, as they should be."""
    found = {}
    for path, language, folder in (
        (DOCS.parent / "README.md", "en", "docs/results/"),
        (DOCS.parent / "README.zh-CN.md", "zh", "docs/results/"),
        (RESULTS / "index.md", "en", ""),
    ):
        text = path.read_text("utf-8")
        if len(MARKS.findall(text)) != 1:
            raise ValueError(f"{path} lacks the marks of the figures")
        before, after = MARKS.split(text)
        found[path] = f"{before}\n{table(language, folder)}\n\n{after}"
    return found


CURVES = (
    (TRANSFORMER, "plain", "spike-driven transformer", "C3", "-"),
    (TRANSFORMER, "memopt", "the same with memopt", "C3", "--"),
    (RESNET, "plain", "SEW-ResNet-18", "C0", "-"),
    (RESNET, "memopt", "the same with memopt", "C0", "--"),
    (OURS, "plain", "T-RevSNN small (sj_ext)", "C2", "-"),
)


def draw(path: Path) -> None:
    """Peak memory of training an image against T, on a card that reads on any page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = (1, 2, 4, 8, 16)
    with pyplot.rc_context({"font.size": 13}):
        figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
        for network, way, label, color, style in CURVES:
            peaks = [memory(network, t, way)["peak"] / 1e6 for t in steps]
            width = 3.2 if network == OURS else 2
            axes.loglog(steps, peaks, style, color=color, marker="o", linewidth=width)
            axes.annotate(
                f"{label}: {peaks[-1]:,.0f}",
                (steps[-1], peaks[-1]),
                xytext=(10, 0),
                textcoords="offset points",
                color=color,
                va="center",
                annotation_clip=False,
            )
        axes.set_xticks(steps, [str(t) for t in steps])
        axes.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
        axes.minorticks_off()
        axes.set(xlabel="time steps T", title="peak memory of training, MB an image (224 × 224)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        figure.savefig(path, dpi=110, facecolor="white")
        pyplot.close(figure)


def main() -> None:
    draw(PICTURE)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(DOCS.parent))
    print(PICTURE.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
