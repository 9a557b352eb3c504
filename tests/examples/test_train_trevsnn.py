"""The training script: two processes, a kill in the middle, and the same weights in the end."""

import importlib
import io
import os
import random
import shutil
import socket
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


def kill_at_first_checkpoint(arguments, output):
    """Start a run of two processes and kill both as soon as there is a checkpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # not by torchrun, which would outlive a kill of its own or restart its processes
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            command(*arguments),
            env={**environment(), **group, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 200
        while not (output / "last.pt").exists() and time.monotonic() < deadline:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.005)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def test_killed_and_continued_ends_as_if_never_killed(folder, tmp_path):
    arguments = ["--data-dir", folder, *SMALL, "--batch-size", 2, "--epochs", 2]
    arguments += ["--warmup-epochs", 1, "--checkpoint-every", 1, "--norm", "bn"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    stdout = run(*arguments, "--output", straight, processes=2)
    assert "epoch 2/2" in stdout

    for _ in range(3):  # a kill may hit the end of an epoch, which is not what is asked for
        kill_at_first_checkpoint([*arguments, "--output", broken], broken)
        progress = checkpoint(broken)["progress"]
        if 0 < progress["batch"] < 10:
            break
        shutil.rmtree(broken)
    assert 0 < progress["batch"] < 10 and progress["updates"] < 20
    run(*arguments, "--output", broken, processes=2)

    expected, got = checkpoint(straight), checkpoint(broken)
    assert got["progress"] == expected["progress"]
    assert got["progress"]["updates"] == 2 * 10
    for part in ("model", "ema"):
        assert got[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            assert torch.equal(got[part][name], value), f"{part}: {name}"
    assert any(not torch.equal(got["ema"][name], got["model"][name]) for name in got["model"])
    assert any((broken / "tensorboard").iterdir())


def test_the_memory_does_not_change_what_is_learned(folder, tmp_path):
    arguments = ["--data-dir", folder, *SMALL, "--epochs", 1]
    models = []
    for memory in ("reversible", "autograd"):
        output = tmp_path / memory
        run(*arguments, "--batch-size", 8, "--memory", memory, "--output", output)
        state = checkpoint(output)["model"]
        models.append(torch.cat([value.double().flatten() for value in state.values()]))
    # as a whole: the optimizer blows up what rounding makes of a gradient that is 0
    assert (models[0] - models[1]).norm() <= 1e-3 * models[0].norm()
    # the checkpoint of one run is not taken for another's
    failed = subprocess.run(
        command(*arguments, "--batch-size", 4, "--output", tmp_path / "autograd"),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert failed.returncode != 0
    assert "batch_size: 8 then, 4 now" in failed.stderr


def test_event_datasets_train_on_two_processes(tmp_path, seed):
    """Frames are made from events by the host, by one process only."""
    draw = numpy.random.default_rng(seed)
    for label in range(2):
        place = tmp_path / "data" / "events_np" / f"class{label}"
        place.mkdir(parents=True)
        for i in range(10):
            events = {"t": numpy.sort(draw.integers(0, 10_000, 400))}
            events |= {axis: draw.integers(0, 128, 400) for axis in "xy"}
            events["p"] = draw.integers(0, 2, 400)
            numpy.savez(place / f"{i}.npz", **events)
    arguments = ["--dataset", "cifar10dvs", "--data-dir", tmp_path / "data", *SMALL]
    arguments += ["--size", 16, "--batch-size", 3, "--epochs", 1, "--output", tmp_path / "out"]
    assert "epoch 1/1" in run(*arguments, processes=2)
    assert checkpoint(tmp_path / "out")["progress"]["updates"] == 3


@pytest.fixture
def data():
    """The module of datasets beside the script."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("trevsnn_data")
    finally:
        sys.path.remove(str(EXAMPLES))


def test_packed_images_are_read_back(data, tmp_path, seed):
    draw = numpy.random.default_rng(seed)
    labels = draw.integers(0, 10, 5)
    files = []
    for label in labels:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (25 * int(label), 100, 50)).save(file, "JPEG")
        files.append(file.getvalue())
    arrays = {
        "jpeg": numpy.frombuffer(b"".join(files), numpy.uint8),
        "offset": numpy.cumsum([0, *map(len, files)]),
        "label": labels.astype(numpy.uint8),
    }
    for part in ("train", "test"):
        numpy.savez(tmp_path / f"{part}.npz", **arrays)
    train, test, classes = data.build_datasets(
        "cifar10", tmp_path, size=48, num_steps=4, rand_augment="rand-m9", erasing=0.25
    )
    assert classes == 10 and len(train) == len(test) == 5
    for index, label in enumerate(labels):
        image, got = test[index]
        assert got == label
        red = image[0] * data.CIFAR_STD[0] + data.CIFAR_MEAN[0]
        assert image.shape == (3, 48, 48)
        assert float(red.mean() * 255) == pytest.approx(25 * int(label), abs=4)
    assert train[0][0].shape == (3, 48, 48)


def test_order_covers_an_epoch_once_and_resumes(data):
    orders = [data.ResumableOrder(23, 4, rank, 2, seed=3) for rank in range(2)]
    whole = [list(order) for order in orders]
    indices = [index for part in whole for _, index in part]
    assert len(indices) == len(set(indices)) == 16  # two whole batches on each of two ranks
    for order, part in zip(orders, whole, strict=True):
        order.first_batch = 1
        assert list(order) == part[4:] and len(order) == 4
        order.first_batch, order.epoch = 0, 1
        assert [index for _, index in order] != [index for _, index in part]
    with pytest.raises(ValueError, match="3 training samples do not fill one batch"):
        data.ResumableOrder(3, 4, 0, 1, seed=0)


def test_samples_draw_their_own_random_numbers(data):
    class Draws(torch.utils.data.Dataset):
        def __getitem__(self, index):
            return index, torch.rand(()).item(), numpy.random.rand(), random.random()

    samples = data.OwnRandomNumbers(Draws(), seed=5)
    first = samples[0, 7]
    torch.manual_seed(1), numpy.random.seed(1), random.seed(1)
    own = torch.rand(()).item(), numpy.random.rand(), random.random()
    torch.manual_seed(1), numpy.random.seed(1), random.seed(1)
    assert samples[0, 7] == first
    assert own == (torch.rand(()).item(), numpy.random.rand(), random.random())
    assert samples[1, 7] != first and samples[0, 8][1:] != first[1:]
