"""Everything about the CUDA kernels that needs a GPU, in one call: tests, benchmark, JSON report.

The report holds the date, the card, the versions, the tests' outcome and the benchmark's figures.
Without a GPU or without CuPy it says so, writes nothing and exits with 0 and the word 'skipped'.

Usage: python examples/benchmarks/gpu_report.py [--short] [--output FILE]
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sj_ext import __version__, host

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # examples/, also as a script

from command_line import Command, new_file  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def missing() -> str | None:
    """Why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (cupy-cuda12x or cupy-cuda13x)"
    return None


def environment() -> dict:
    """Date, card and versions."""
    import cupy

    card = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "card": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "memory_bytes": card.total_memory,
        "devices": torch.cuda.device_count(),
        "sj_ext": __version__,
        "spikingjelly": host.VERSION,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "python": platform.python_version(),
    }


def tests() -> dict:
    """Outcome of the tests that need the device."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/ops/test_turn_on_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    print(*lines[-30:], sep="\n")
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else done.stderr[-500:]}


def benchmark(short: bool) -> list[dict]:
    """The rows of ``turn_on.py --device cuda``, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, str(ROOT / "examples/benchmarks/turn_on.py")]
        command += ["--device", "cuda", "--json", str(path), *(["--short"] if short else [])]
        subprocess.run(command, cwd=ROOT, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def make_parser() -> Command:
    parser = Command(__doc__, short={})
    parser.add_argument(
        "--output", type=new_file, default="gpu_report.json", help="where the report goes"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse(argv)
    reason = missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    report = {"environment": environment(), "tests": tests()}
    report["turn_on"] = benchmark(arguments.short)
    Path(arguments.output).write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"wrote {arguments.output}")
    return report["tests"]["exit_code"]


if __name__ == "__main__":
    sys.exit(main())
