"""A checkpoint is whole whatever happens to the process, the disk or the file, and runs no code."""

import ast
import errno
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext import checkpoint, host
from sj_ext.checkpoint import load_checkpoint, save_checkpoint
from sj_ext.neuron import IMPLIFNode
from sj_ext.pruning import MinimaxPruner

ROOT = Path(__file__).parents[1]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_what_a_training_run_keeps_comes_back(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(6, 9), IMPLIFNode(), torch.nn.LayerNorm(9))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.rand(4, 6))
    pruner = MinimaxPruner(net, budget=0.4, first=True, schedule=20)
    for _ in range(3):
        host.functional.reset_net(net)
        net(torch.rand(4, 6)).sum().backward()
        optimizer.step()
        pruner.step()
    parts = {"net": net, "optimizer": optimizer, "pruner": pruner}
    state = {name: part.state_dict() for name, part in parts.items()} | {"epoch": 3, "best": 0.5}
    save_checkpoint(state, tmp_path / "run.pt")
    assert same(state, load_checkpoint(tmp_path / "run.pt"))
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    moved = load_checkpoint(str(tmp_path / "run.pt"), map_location="meta")
    assert moved["net"]["2.weight"].is_meta


KILLED = """
import os, random, signal, sys, time
import torch
from sj_ext.checkpoint import load_checkpoint, save_checkpoint

path, kills = sys.argv[1], int(sys.argv[2])
random.seed(int(sys.argv[3]))
torch.set_num_threads(1)
number, caught = 0, 0
save_checkpoint({"number": 0, "values": torch.zeros(300_000)}, path)
for _ in range(kills):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            number += 1
            save_checkpoint({"number": number, "values": torch.full((300_000,), number)}, path)
            os.write(writing, number.to_bytes(8, "little"))
    time.sleep(random.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    told = b""
    while part := os.read(reading, 1 << 16):
        told += part
    os.close(reading)
    caught += os.path.exists(path + ".partial")
    state = load_checkpoint(path)
    assert (state["values"] == state["number"]).all(), "parts of two checkpoints"
    last = int.from_bytes(told[-8:], "little") if told else number
    assert last <= state["number"] <= last + 1, (last, state["number"])
    number = state["number"]
print(number, caught)
"""


def test_kill_during_a_write_leaves_the_last_whole_checkpoint(tmp_path, seed):
    """SIGKILL at random moments: what had been saved is there, and nothing is mixed."""
    arguments = [str(tmp_path / "run.pt"), "30", str(seed)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    saved, caught = map(int, done.stdout.split())
    assert saved > 0 and caught > 0, "no kill hit a write"


@pytest.mark.parametrize("before", [False, True], ids=["first checkpoint", "later one"])
@pytest.mark.parametrize("fault", ["disk full", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, fault, before):
    path = tmp_path / "run.pt"
    if before:
        save_checkpoint({"epoch": 1}, path)

    def fails(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    reason = "Input/output error"
    if fault == "disk full":  # what is written through the link meets a device without space
        (tmp_path / "run.pt.partial").symlink_to("/dev/full")
        reason = "No space left on device"
    else:
        monkeypatch.setattr(checkpoint.os, fault, fails)
    kept = "one before it is still whole" if before else "there is none yet"
    with pytest.raises(OSError, match=f"{reason}.*{kept}") as caught:
        save_checkpoint({"epoch": 2, "values": torch.rand(100_000)}, path)
    assert caught.value.errno in (errno.EIO, errno.ENOSPC) and caught.value.filename == str(path)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == (["run.pt"] if before else [])
    if before:
        assert load_checkpoint(path) == {"epoch": 1}
    save_checkpoint({"epoch": 2}, path)
    assert load_checkpoint(path) == {"epoch": 2}


def test_an_error_that_is_not_the_disks_passes_through(tmp_path):
    save_checkpoint({"epoch": 1}, tmp_path / "run.pt")
    with pytest.raises((AttributeError, TypeError)):
        save_checkpoint({"function": lambda: 0}, tmp_path / "run.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert load_checkpoint(tmp_path / "run.pt") == {"epoch": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run.pt"
    state = {"net": OrderedDict(weight=torch.rand(40, 30)), "epoch": 7, "rate": [0.1, 0.2]}
    save_checkpoint(state, path)
    return state, path.read_bytes(), path.with_name("broken.pt")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_named_and_refused(whole, share):
    _, content, broken = whole
    broken.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RuntimeError, match=r"broken\.pt is cut short or damaged"):
        load_checkpoint(broken)


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_harmless(whole, share, bit):
    state, content, broken = whole
    changed = bytearray(content)
    changed[int(share * len(content))] ^= 1 << bit
    broken.write_bytes(changed)
    try:
        loaded = load_checkpoint(broken)
    except RuntimeError as error:
        assert "broken.pt" in str(error)
    else:
        assert same(loaded, state)


class Code:
    def __reduce__(self):
        return (os.mkdir, ("made by a checkpoint",))


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"net": Code()}, "run.pt")
    with pytest.raises(RuntimeError, match=r"run\.pt holds more than tensors.*not loaded"):
        load_checkpoint("run.pt")
    torch.save({"net": Code()}, "run.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RuntimeError, match=r"run\.pt is cut short or damaged, or no checkpoint"):
        load_checkpoint("run.pt")
    assert not Path("made by a checkpoint").exists()


def test_wrong_arguments_and_files_are_named(tmp_path):
    with pytest.raises(TypeError, match="state must be a mapping, got "):
        save_checkpoint([1], tmp_path / "run.pt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "run.pt")
    with pytest.raises(OSError, match="No such file or directory"):
        save_checkpoint({"epoch": 1}, tmp_path / "nowhere" / "run.pt")
    torch.save([1], tmp_path / "run.pt")
    with pytest.raises(RuntimeError, match=r"run\.pt holds a list"):
        load_checkpoint(tmp_path / "run.pt")


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def suspicious(tree):
    """Lines that could run what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in FORBIDDEN:
                yield node.lineno, name
            if name.endswith("torch.load") and keywords.get("weights_only") != "True":
                yield node.lineno, "torch.load without weights_only=True"
            if keywords.get("allow_pickle", "False") != "False":
                yield node.lineno, "allow_pickle"
            if name.split(".")[0] in UNPICKLING and name.split(".")[-1] != "UnpicklingError":
                yield node.lineno, name
            if name in ("yaml.load", "torch.hub.load", "torch.jit.load"):
                yield node.lineno, name
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLING:
            yield node.lineno, f"from {node.module}"


def test_nothing_unpickles_or_evaluates():
    files = [f for folder in ("sj_ext", "examples") for f in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = [
        f"{file.relative_to(ROOT)}:{line}: {what}"
        for file in files
        for line, what in suspicious(ast.parse(file.read_text("utf-8")))
    ]
    assert not found
    caught = "torch.load(f); numpy.load(f, allow_pickle=True); pickle.loads(b); eval(s)"
    assert len(list(suspicious(ast.parse(caught)))) == 4


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    """A checkpoint that load_checkpoint refuses is found out when it is made, not when needed."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"a": torch.ones(2)}, path)
    for foreign in (torch.nn.Linear(2, 2), tmp_path, {"x": [object]}):
        with pytest.raises(TypeError, match="load_checkpoint would refuse it"):
            save_checkpoint({"a": torch.ones(2), "foreign": foreign}, path)
    assert load_checkpoint(path)["a"].tolist() == [1.0, 1.0] and list(tmp_path.iterdir()) == [path]
