"""What T-RevSNN needs at a size that no single machine here can run, counted without running it.

The model is built and trained for one step on fake tensors, which have shapes and no values. Every
storage that an operator returns is counted while it lives, as ``activation_memory`` counts real
ones; what an operator takes and gives back inside itself is not seen. Of two batches the difference
is what one image costs. "Check" rows count a small network both ways: the bytes held for the
backward pass must be the same to the byte.

Parameters, their gradients and the optimizer's two moments are sharded by FSDP2. The levels of all
steps are one node of the autograd graph, so they are one unit: during a step each device also has
all weights, and all gradients until they are scattered.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from benchmarks.framework.record import markdown
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sj_ext.analysis import activation_memory
from sj_ext.functional import loss_inputs as loss_module
from sj_ext.functional import tet_cross_entropy
from sj_ext.layer import TemporalReversible
from sj_ext.layer.temporal_reversible import randomness, recorder
from sj_ext.model import TRevSNN

TITLE = "Scale: T-RevSNN at 1024 x 1024, T = 64 and a billion parameters"
IMAGES = False

SMALL = {"channels": [8, 8, 12, 16], "kernel_size": 3, "T": 6, "side": 64, "classes": 10}
LARGE = {"channels": [144, 288, 576, 768], "kernel_size": 5, "side": 1024, "classes": 1000}
DEVICES = (8, 64, 512)


def cells(size: str) -> list[dict]:
    rows = [
        {"part": "check", "norm": norm, "encode": encode, **SMALL}
        for norm, encode in (("ws", "group"), ("bn", "repeat"))
    ]
    common = {"part": "activations", "norm": "ws", **LARGE}
    steps = (2,) if size == "short" else (1, 4, 16, 64)
    rows += [{**common, "encode": "repeat", "T": num_steps} for num_steps in steps]
    return rows if size == "short" else [*rows, {**common, "encode": "group", "T": 64}]


def measure(cell: dict, context) -> dict:
    if cell["part"] == "check":
        real = counted(cell, 2)
        with without_values():
            return {"real": real, "fake": simulated(cell, 2)}
    with without_values():
        parameters = sum(p.numel() for p in build(cell).parameters())
        one, two = (simulated(cell, batch) for batch in (1, 2))
    return {
        "parameters": parameters,
        "held": two["held"] - one["held"],
        "peak": two["peak"] - one["peak"],
        "fixed": 2 * one["peak"] - two["peak"],
    }


def build(cell: dict) -> TRevSNN:
    net = TRevSNN(
        cell["channels"],
        cell["classes"],
        cell["T"],
        kernel_size=cell["kernel_size"],
        encode=cell["encode"],
        norm=cell["norm"],
    )
    net.cell.replay_tolerance = None  # its comparison needs values
    return net


def training_loss(cell: dict, batch: int) -> Callable[[], torch.Tensor]:
    """The loss of a new network, whose parameters have their gradients already."""
    net = build(cell)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    images = torch.randn(batch, 3, cell["side"], cell["side"])
    target = torch.randint(cell["classes"], (batch,))
    return lambda: tet_cross_entropy(net(images), target)


def counted(cell: dict, batch: int) -> dict:
    """Bytes held after the forward pass, and the peak of a step, of a real run."""
    loss = training_loss(cell, batch)
    _, forward = activation_memory(loss)
    _, step = activation_memory(lambda: loss().backward())
    return {"held": forward.saved, "peak": step.peak}


def simulated(cell: dict, batch: int) -> dict:
    """The same from the storages that operators return."""
    loss = training_loss(cell, batch)
    with Storages() as storages:
        value = loss()
        gc.collect()
        held = storages.total
        value.backward()
    return {"held": held, "peak": storages.peak}


class Storages(TorchDispatchMode):
    """Counts the bytes of new storages while they live."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        known = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        result = operator(*args, **(kwargs or {}))
        for storage in (_storage(t) for t in tree_leaves(result) if _is_tensor(t)):
            if storage._cdata not in known and storage._cdata not in self.live:
                self.live[storage._cdata] = storage.nbytes()
                self.total += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self.total)
        return result

    def _gone(self, key: int) -> None:
        self.total -= self.live.pop(key, 0)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Fake tensors, and answers in place of values: decays of 0.5, targets in range, no draws."""

    def anchors(own: recorder.Recorder, level: int) -> frozenset[int]:
        last = own._last_potential(level)
        if last < 0:
            return frozenset()
        return recorder.anchor_steps(last, 0.5, own.dtypes[level], own.options.tolerance)

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(TemporalReversible, "_decay", lambda own, a: torch.nn.Parameter(a)))
        enter(mock.patch.object(recorder.Recorder, "_anchors", anchors))
        enter(mock.patch.object(randomness.RandomState, "get", lambda own: []))
        enter(mock.patch.object(loss_module, "_check_values", lambda *arguments: None))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def table(rows: list[dict]) -> str:
    checks = [row for row in rows if row["cell"]["part"] == "check"]
    counts = [row for row in rows if row["cell"]["part"] == "activations"]
    parts = []
    if checks:
        lines = [
            [
                f"{row['cell']['norm']}, {row['cell']['encode']}",
                row["figures"]["real"]["held"],
                row["figures"]["fake"]["held"],
                row["figures"]["real"]["peak"],
                row["figures"]["fake"]["peak"],
            ]
            for row in checks
        ]
        header = ["small network", "held, real", "held, fake", "peak, real", "peak, fake"]
        parts.append(markdown(header, lines))
    if counts:
        lines = [
            [
                row["cell"]["encode"],
                row["cell"]["T"],
                f"{row['figures']['parameters'] / 1e6:.0f}",
                f"{row['figures']['held'] / 2**20:.0f}",
                f"{row['figures']['peak'] / 2**20:.0f}",
                f"{row['figures']['fixed'] / 2**20:.0f}",
            ]
            for row in counts
        ]
        header = ["encode", "T", "parameters (million)", "held (MiB/image)", "peak (MiB/image)"]
        parts.append(markdown([*header, "besides (MiB)"], lines))
        parts += [per_device(row) for row in counts if row["cell"]["T"] >= 64]
    return "\n\n".join(parts)


def per_device(row: dict) -> str:
    """GiB of one device, and the images that 80 GB take in."""
    found, lines = row["figures"], []
    for devices in DEVICES:
        state = 16 * found["parameters"] / devices  # weight, gradient and two moments in float32
        unit = 8 * found["parameters"]  # weights and gradients of the one unit
        rest = 80e9 - state - unit - found["fixed"]  # gradients in "fixed" count twice here
        gib = [part / 2**30 for part in (state, unit, found["fixed"], found["peak"])]
        lines.append([devices, *(f"{part:.2f}" for part in gib), int(rest // found["peak"])])
    header = ["devices", "sharded state", "gathered unit", "besides", "one image"]
    title = f"GiB per device, {row['cell']['encode']}, T = {row['cell']['T']}:"
    return f"{title}\n\n" + markdown([*header, "images in 80 GB"], lines)
