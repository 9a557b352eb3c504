"""Runs that a signal, a full disk or the death of a process stops: what they say, and going on."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from sj_ext.checkpoint import load_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"

#: prune_cifar10.py on few images; it says when it takes the pruner's step of number STOP_AT, and
#: does not go on to the next before it is stopped
PRUNE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import prune_cifar10
digits, pruner = prune_cifar10.digits, prune_cifar10.MinimaxPruner

def few():
    return tuple((x[:96], y[:96]) for x, y in digits())

class Pruner(pruner):
    left = int(os.environ.get("STOP_AT", -1))

    def step(self, *arguments, **keywords):
        Pruner.left -= 1
        if Pruner.left == 0:
            print("pruning", flush=True)
        result = super().step(*arguments, **keywords)
        if Pruner.left == 0:
            time.sleep(60)
        return result

prune_cifar10.digits, prune_cifar10.MinimaxPruner = few, Pruner
sys.argv = ["prune_cifar10.py", "--short", "--batch", "32", "--budget", "0.3", *sys.argv[2:]]
prune_cifar10.main()
"""


def environment(**more):
    paths = [os.environ.get("PYTHONPATH", ""), str(EXAMPLES.parent)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def heed_interrupts():
    """Tests that run in the background of a shell would hand on that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*command, **more):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, command)],
        env=environment(**more),
        preexec_fn=heed_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=200):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def pruning(folder, name, **more):
    return start(
        *("-c", PRUNE, EXAMPLES, "--checkpoint", folder / f"{name}.pt"),
        *("--csr", folder / f"{name}.csr.pt", "--history", folder / f"{name}.csv"),
        **more,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_during_pruning_loses_nothing_that_was_saved(tmp_path, number, straight):
    """Stopped at a random step of the pruner; the run that goes on ends with the same weights."""
    process = pruning(tmp_path, "run", STOP_AT=str(random.randrange(1, 12)))
    while process.stdout.readline() != "pruning\n":
        assert process.poll() is None
    process.send_signal(number)
    status, _, err = finish(process)
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number
        assert f"stopped by {number.name}" in err and "run.pt keeps the run up to" in err
        assert "Traceback" not in err
    saved = load_checkpoint(tmp_path / "run.pt")
    assert saved["epoch"] >= 3
    status, out, err = finish(pruning(tmp_path, "run"))
    assert status == 0, err[-2000:]
    assert f"going on from {tmp_path / 'run.pt'}, epoch {saved['epoch']}" in out
    found = load_checkpoint(tmp_path / "run.csr.pt")
    wanted = load_checkpoint(straight / "straight.csr.pt")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name]["weight"].to_dense(), wanted[name]["weight"].to_dense())
    assert (tmp_path / "run.csv").read_text() == (straight / "straight.csv").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    status, _, err = finish(pruning(folder, "straight"))
    assert status == 0, err[-2000:]
    return folder


@pytest.fixture
def images(tmp_path, seed):
    """An image folder of two classes."""
    draw = numpy.random.default_rng(seed)
    for part, count in (("train", 16), ("val", 2)):
        for label in range(2):
            place = tmp_path / "data" / part / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 128, (32, 32, 3)) + 127 * label
                Image.fromarray(pixels.astype(numpy.uint8)).save(place / f"{i}.png")
    return tmp_path / "data"


def training(images, output, **more):
    small = "--channels 4 4 6 8 --num-steps 2 --size 32 --workers 0 --batch-size 2 --epochs 1"
    return start(
        *(EXAMPLES / "train_trevsnn.py", "--data-dir", images, "--output", output),
        *(*small.split(), "--warmup-epochs", 0, "--checkpoint-every", 1),
        **more,
    )


def wait_for(file, *processes):
    deadline = time.monotonic() + 200
    while not file.exists() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    assert file.exists()


def test_a_process_that_dies_ends_the_others_with_a_message(images, tmp_path):
    """One of two is killed; the other says so in time, and what was saved is whole."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    output = tmp_path / "out"
    processes = [training(images, output, **group, RANK=str(rank)) for rank in range(2)]
    try:
        wait_for(output / "last.pt", *processes)
        processes[1].kill()
        status, _, err = finish(processes[0], 60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert status not in (0, None)
    assert "process 0 of 2" in err and "last.pt keeps those up to the last save" in err
    updates = load_checkpoint(output / "last.pt")["progress"]["updates"]
    assert 0 < updates < 8


def test_training_goes_on_after_a_full_disk_and_a_signal(images, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "last.pt.partial").symlink_to("/dev/full")
    status, _, err = finish(training(images, output))
    assert status == 1
    assert "No space left on device" in err and "there is none yet" in err
    assert "1 updates done; no checkpoint yet" in err

    process = training(images, output)
    wait_for(output / "last.pt", process)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in err and "Traceback" not in err
    saved = load_checkpoint(output / "last.pt")["progress"]
    (output / "last.pt").write_bytes((output / "last.pt").read_bytes()[:1000])
    status, _, err = finish(training(images, output))
    assert status == 1 and "last.pt is cut short or damaged" in err
    assert saved["updates"] < 16
    (output / "last.pt").unlink()
    status, out, err = finish(training(images, output))
    assert status == 0, err[-2000:]
    assert "epoch 1/1" in out
    assert load_checkpoint(output / "last.pt")["progress"]["updates"] == 16
