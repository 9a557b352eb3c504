"""The training script: two processes, a kill in the middle, and the same weights in the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGE = EXAMPLES.parent

SMALL = ["--channels", "4", "4", "6", "8", "--num-steps", "2", "--size", "32", "--workers", "0"]


def environment():
    paths = [os.environ.get("PYTHONPATH", ""), str(PACKAGE)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def command(*arguments, processes=1):
    script = [str(EXAMPLES / "train_trevsnn.py"), *map(str, arguments)]
    if processes == 1:
        return [sys.executable, *script]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, *script]


def run(*arguments, processes=1):
    done = subprocess.run(
        command(*arguments, processes=processes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def checkpoint(folder):
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture
def folder(tmp_path, seed):
    """An image folder of two classes that differ in brightness."""
    draw = numpy.random.default_rng(seed)
    for part, count in (("train", 20), ("val", 6)):
        for label in range(2):
            place = tmp_path / "data" / part / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 128, (40, 36, 3)) + 127 * label
                Image.fromarray(pixels.astype(numpy.uint8)).save(place / f"{i}.png")
    return tmp_path / "data"


def test_killed_and_continued_ends_as_if_never_killed(folder, tmp_path):
    arguments = ["--data-dir", folder, *SMALL, "--batch-size", 4, "--epochs", 4]
    arguments += ["--warmup-epochs", 1, "--checkpoint-every", 1, "--norm", "bn"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    stdout = run(*arguments, "--output", straight, processes=2)
    assert "epoch 4/4" in stdout

    process = subprocess.Popen(
        command(*arguments, "--output", broken, processes=2),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (broken / "last.pt").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    progress = checkpoint(broken)["progress"]
    assert 0 < progress["updates"] < 20
    run(*arguments, "--output", broken, processes=2)

    expected, got = checkpoint(straight), checkpoint(broken)
    assert got["progress"] == expected["progress"]
    assert got["progress"]["updates"] == 4 * 5
    for part in ("model", "ema"):
        assert got[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            assert torch.equal(got[part][name], value), f"{part}: {name}"
    assert any((tmp_path / "broken" / "tensorboard").iterdir())


def test_the_memory_does_not_change_what_is_learned(folder, tmp_path):
    arguments = ["--data-dir", folder, *SMALL, "--batch-size", 8, "--epochs", 1]
    models = []
    for memory in ("reversible", "autograd"):
        output = tmp_path / memory
        run(*arguments, "--memory", memory, "--output", output)
        models.append(checkpoint(output)["model"])
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, atol=1e-4, rtol=1e-3)


def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path):
    arguments = ["--data-dir", folder, *SMALL, "--epochs", 1, "--output", tmp_path / "out"]
    run(*arguments, "--batch-size", 8)
    failed = subprocess.run(
        command(*arguments, "--batch-size", 4), env=environment(), capture_output=True, text=True
    )
    assert failed.returncode != 0
    assert "batch_size: 8 then, 4 now" in failed.stderr
