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
from torch.nn.functional import cross_entropy

from sj_ext.model import TRevSNN
from sj_ext.model.trevsnn import published_state_dict

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGE = EXAMPLES.parent

SMALL = ["--channels", "4", "4", "6", "8", "--num-steps", "2", "--size", "32", "--workers", "0"]
SMALL += ["--kernel-size", "3"]


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


def beside_the_script(name):
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture
def data():
    return beside_the_script("trevsnn_data")


@pytest.fixture
def augment():
    return beside_the_script("trevsnn_augment")


@pytest.fixture
def recipe():
    return beside_the_script("trevsnn_recipe")


@pytest.fixture
def script(monkeypatch):
    """The script's ``main``, in this process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    main = beside_the_script("train_trevsnn").main
    return lambda *arguments: main([str(argument) for argument in arguments])


def test_packed_images_are_read_back(data, augment, tmp_path, seed):
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
        red = image[0] * augment.CIFAR_STD[0] + augment.CIFAR_MEAN[0]
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


@pytest.mark.parametrize("kind", ["cifar_transforms", "image_transforms"])
def test_the_default_augmentation_takes_thousands_of_images(augment, recipe, kind, seed):
    """Two of its operations are asked to keep 0 bits of an image, a few times in a thousand."""
    string = recipe.make_parser("").get_default("rand_augment")
    train, val = getattr(augment, kind)(32, string, 0.25, "bilinear")
    image = Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (32, 32, 3), "uint8"))
    for _ in range(3000):
        assert train(image).shape == (3, 32, 32)
    assert val(image).shape == (3, 32, 32)


def test_posterize_keeps_the_highest_bits(augment, seed):
    pixels = numpy.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(numpy.uint8)
    for bits in range(9):
        got = numpy.asarray(augment.posterize(Image.fromarray(pixels), bits))
        assert (got == (pixels >> (8 - bits)) << (8 - bits)).all()


def test_event_augmentation_is_the_same_for_every_frame(augment):
    change = augment.EventAugmentation(16)
    frame = torch.rand(2, 16, 16)
    changed = []
    for _ in range(60):
        x = change(frame.expand(3, 2, 16, 16).clone())
        assert x.shape == (3, 2, 16, 16) and torch.equal(x[0], x[2])
        changed.append(not torch.equal(x[0], frame))
    assert sum(changed) > 30


def test_a_bad_image_is_named_and_can_be_skipped(folder, script, tmp_path, capsys):
    """A run that met one goes on from its checkpoint without it."""
    bad = folder / "train" / "class1" / "7.png"
    bad.write_bytes(b"no image")
    arguments = ["--data-dir", folder, *SMALL, "--batch-size", 4, "--epochs", 1]
    arguments += ["--checkpoint-every", 1, "--output", tmp_path / "out"]
    for _ in range(2):  # the same image stops a run that is continued
        with pytest.raises(SystemExit, match=f"error: {bad}: .*; --skip-bad-images goes on"):
            script(*arguments)
    script(*arguments, "--skip-bad-images")
    printed = capsys.readouterr()
    assert "1 bad images skipped" in printed.out and f"skipped: {bad}" in printed.err
    assert checkpoint(tmp_path / "out")["progress"]["updates"] == 10


def test_readable_puts_the_next_one_in_a_bad_ones_place(data):
    class Some(torch.utils.data.Dataset):
        path = "somewhere"

        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index > 2:
                raise OSError("broken")
            return index, index

    samples = data.Readable(Some())
    assert samples[2] == (2, 2, "")
    assert samples[3] == (0, 0, "image 3 of somewhere: broken")
    assert data.place(torch.utils.data.Subset(Some(), [4]), 0) == "image 4 of somewhere"
    with pytest.raises(RuntimeError, match="image 3 of somewhere"):
        data.Readable(torch.utils.data.Subset(Some(), [3, 4]))[0]


def test_learning_rate_is_the_programs(recipe):
    args = recipe.parse("", ["--data-dir", "x", "--output", "y"])
    rates = recipe.scaled(args, 8 * 512)
    assert rates == pytest.approx((8e-3, 4e-5, 4e-6))
    assert recipe.scaled(args, 128)[0] == pytest.approx(8e-3 / 32)
    for epoch, wanted in ((0, 4e-5), (10, (8e-3 + 4e-5) / 2), (20, 8e-3), (160, 4.002e-3)):
        assert recipe.learning_rate(epoch, 300, 20, rates) == pytest.approx(wanted)
    assert recipe.learning_rate(300, 300, 20, rates) == pytest.approx(4e-6)


def test_published_loss_weighs_later_steps_more(recipe):
    y_seq = torch.randn(4, 3, 5, dtype=torch.float64)
    target = torch.tensor([1, 0, 4])
    each = [cross_entropy(y.float(), target, label_smoothing=0.1) for y in y_seq]
    options = {"label_smoothing": 0.1, "events": False}
    got = {w: recipe.training_loss(y_seq, target, weights=w, **options) for w in WEIGHTS}
    torch.testing.assert_close(
        got["published"], sum((i + 1) / 4 * c for i, c in enumerate(each)) + each[3]
    )
    torch.testing.assert_close(got["mean"], sum(each) / 4)
    torch.testing.assert_close(got["last"], each[3])
    tet = recipe.training_loss(y_seq, target, weights="published", label_smoothing=0.1, events=True)
    wanted = 0.999 * sum(each) / 4 + 0.001 * (y_seq.float() - 1).square().mean()
    torch.testing.assert_close(tet, wanted)


WEIGHTS = ("published", "mean", "last")


def test_what_decays_is_what_the_program_lets_decay(recipe):
    net = TRevSNN((4, 4, 6, 8), 5, 2, encode="repeat", norm="bn")
    names = {id(p): name for name, p in net.named_parameters()}
    with_, without = (
        {names[id(p)] for p in g["params"]} for g in recipe.groups(net, 0.1, "published")
    )
    assert with_ | without == set(names.values()) and not with_ & without
    assert all(
        name.endswith(("gain", "gamma")) or "decays" in name or "weight" in name for name in with_
    )
    assert all(name.endswith("bias") or ".1.weight" in name for name in without)
    assert any("decays" in name for name in with_) and any("bias" in name for name in without)


def test_every_configuration_is_read_and_the_published_one_is_the_default(recipe, tmp_path, capsys):
    needed = ["--data-dir", "x", "--output", "y"]
    files = sorted((EXAMPLES / "configs").glob("*.yaml"))
    assert len(files) >= 7
    for file in files:
        recipe.parse("", ["--config", str(file), *needed])
    published = recipe.parse(
        "", ["--config", str(EXAMPLES / "configs" / "imagenet_small.yaml"), *needed]
    )
    default = recipe.parse("", needed)
    published.config = None
    assert published == default
    default.amp = "float16"
    assert len(recipe.deviations(default, 4096)) == 1
    several = recipe.deviations(recipe.parse("", [*needed, "--lr", "1", "--size", "64"]), 64)
    assert any("lr 1.0 for 0.002" in line for line in several)
    assert any("64 images per update" in line for line in several)

    own = tmp_path / "own.yaml"
    own.write_text("epochs: 7\nbatch_size: 3\nchannels: [1, 2, 3, 4]\ntrust-clip: false\n")
    args = recipe.parse("", ["--config", str(own), *needed, "--epochs", "8"])
    assert (args.epochs, args.batch_size, args.channels) == (8, 3, (1, 2, 3, 4))
    assert not args.trust_clip
    for text, message in (
        ("epoch: 7", "has 'epoch', which is no option"),
        ("epochs: many", "argument --epochs: invalid int value: 'many'"),
        ("7", "must hold options"),
    ):
        own.write_text(text)
        with pytest.raises(SystemExit):
            recipe.parse("", ["--config", str(own), *needed])
        assert message in capsys.readouterr().err


def test_published_weights_are_evaluated_and_started_from(folder, script, tmp_path, capsys):
    torch.manual_seed(0)
    net = TRevSNN((4, 4, 6, 8), 2, 2, encode="repeat", norm="bn", init="published")
    state = published_state_dict(net)
    averaged = {name: value + 1e-3 for name, value in state.items() if value.is_floating_point()}
    torch.save({"model": state, "state_dict_ema": {**state, **averaged}}, tmp_path / "theirs.pth")
    arguments = ["--data-dir", folder, "--size", 32, "--workers", 0, "--batch-size", 20]
    script(*arguments, "--eval", tmp_path / "theirs.pth")
    printed = capsys.readouterr().out
    assert "accuracy 0." in printed and "EMA 0." in printed

    small = [*SMALL, "--epochs", 1, "--lr", 0, "--warmup-lr", 0, "--min-lr", 0]
    output = tmp_path / "out"
    script(*arguments, *small, "--init-from", tmp_path / "theirs.pth", "--output", output)
    begun = checkpoint(output)["model"]
    for name, value in net.named_parameters():
        assert torch.equal(begun[name], value), name
    capsys.readouterr()
    script(*arguments, "--eval", output / "last.pt")
    assert "accuracy 0." in capsys.readouterr().out

    other = TRevSNN((4, 4, 6, 8), 7, 2, encode="repeat", norm="bn")
    torch.save(published_state_dict(other), tmp_path / "more_classes.pth")
    with pytest.raises(SystemExit, match="of 7 classes, but imagefolder has 2"):
        script(*arguments, "--eval", tmp_path / "more_classes.pth")
    start_from = beside_the_script("trevsnn_weights").start_from
    assert "but its classifiers" in start_from(net, tmp_path / "more_classes.pth")
    assert torch.equal(net.stem[0].weight, other.stem[0].weight)
    with pytest.raises(ValueError, match="is of another network: .* such as cell.decays.0.0"):
        start_from(TRevSNN((6, 4, 6, 8), 7, 2, norm="bn"), tmp_path / "more_classes.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "none.pth")
    with pytest.raises(SystemExit, match="neither of this script nor a published one"):
        script(*arguments, "--eval", tmp_path / "none.pth")
