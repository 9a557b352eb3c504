"""What is counted on fake tensors is what a real run allocates."""

import random

import pytest
import torch
from benchmarks.record import Context
from benchmarks.tables import scale


def random_cell(part, **more):
    channels = [4 * random.randint(1, 3) for _ in range(4)]
    cell = {"part": part, "channels": channels, "kernel_size": random.choice([3, 5])}
    return {**cell, "T": random.randint(2, 3), "side": 16 * random.randint(2, 3), **more}


@pytest.mark.parametrize("norm", ["ws", "bn"])
def test_bytes_held_are_the_same(norm, seed):
    encode = random.choice(["group", "repeat"])
    cell = random_cell("check", classes=7, norm=norm, encode=encode)
    figures = scale.measure(cell, Context("short"))
    real, fake = figures["real"], figures["fake"]
    assert fake["held"] == real["held"] > 0, cell
    # what operators take and give back inside themselves is not seen
    assert real["held"] < fake["peak"] <= real["peak"], cell


def test_an_image_holds_what_it_holds_really(seed):
    cell = random_cell("activations", classes=7, norm="ws", encode="repeat")
    figures = scale.measure(cell, Context("short"))
    one, two = (scale.counted(cell, batch) for batch in (1, 2))
    assert figures["held"] == two["held"] - one["held"]
    assert figures["held"] < figures["peak"] <= two["peak"] - one["peak"]
    assert figures["parameters"] == sum(p.numel() for p in scale.build(cell).parameters())


def test_nothing_stays_patched():
    with scale.without_values():
        inside = torch.zeros(3)
    assert type(inside) is not torch.Tensor and type(torch.zeros(3)) is torch.Tensor
    with pytest.raises(ValueError, match="min_decay"):
        scale.TemporalReversible([torch.nn.Identity()], [0.0])


def test_the_table_of_a_device(seed):
    large = {"part": "activations", "encode": "repeat", "T": 64}
    found = {"parameters": 10**9, "held": 2**30, "peak": 4 * 2**30, "fixed": 2**30}
    text = scale.table([{"cell": large, "figures": found}])
    assert "| repeat | 64 | 1000 | 1024 | 4096 | 1024 |" in text
    # 80 GB less 2 GB of state, 8 GB of the gathered unit and 1 GiB, over 4 GiB
    assert "| 8 | 1.86 | 7.45 | 1.00 | 4.00 | 16 |" in text
