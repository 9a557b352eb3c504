"""Build the sdist and the wheel, look into them, and run the wheel from a bare environment.

    python tests/release/check.py FOLDER [HOST14]

FOLDER gets the two files. The bare environment sees the dependencies of the present one through its
path, so that nothing is downloaded again, and sj_ext from the wheel only. HOST14 is a folder with
SpikingJelly 0.0.0.0.14; the smoke test runs with it as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: what both must hold, from the package's folder
NEEDED = {
    "__init__.py",
    "py.typed",
    "host/__init__.py",
    "ops/turn_on/kernel.cu",
    "ops/turn_on/README.md",
}
#: the beginnings of paths that neither may hold
UNWANTED = ("tests/", "docs/", "examples/", "shared/", "runs/", ".ci/", ".github/")
#: ends of names of data and of what is built
UNWANTED_ENDS = (".npz", ".pt", ".pth", ".png", ".json", ".csv", ".pyc", ".so", ".cubin", ".ptx")


def run(*command: str, **options) -> None:
    """A command that must succeed."""
    print("+", " ".join(str(part) for part in command), flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)


def look_into(names: list[str], what: str, extra: set[str]) -> None:
    """Raise if a file is missing or does not belong there."""
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sj_ext").rglob("*.py")}
    missing = (package | {f"sj_ext/{name}" for name in NEEDED} | extra) - set(names)
    strange = [n for n in names if n.startswith(UNWANTED) or n.endswith(UNWANTED_ENDS)]
    if missing or strange:
        sys.exit(f"{what}: missing {sorted(missing)}, unwanted {strange}")
    print(f"{what}: {len(names)} files, all that should be there and nothing else")


def build(folder: Path) -> Path:
    """Both files, looked into; the wheel comes from the sdist, as it does for who installs that."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    with tarfile.open(sdist) as archive:
        files = [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]
    look_into(files, sdist.name, {"LICENSE", "README.md", "pyproject.toml", "CITATION.cff"})
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
    look_into(files, wheel.name, set())
    return wheel


def bare_environment(folder: Path, wheel: Path) -> Path:
    """The interpreter of a fresh environment that has the wheel."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # A folder on the path, whose own .pth files (the editable install among them) do not count.
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return python


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    hosts = ["", *(str(Path(path).resolve()) for path in sys.argv[2:])]
    wheel = build(folder)
    with tempfile.TemporaryDirectory() as scratch:
        python = bare_environment(Path(scratch, "bare"), wheel)
        smoke = shutil.copy(Path(__file__).with_name("smoke.py"), scratch)
        for path in hosts:
            environment = {**os.environ, "PYTHONPATH": path}
            run(python, "-W", "ignore", smoke, scratch, cwd=scratch, env=environment)


if __name__ == "__main__":
    main()
