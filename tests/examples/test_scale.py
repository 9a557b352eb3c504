"""What is counted on fake tensors is what a real run allocates."""

import random

import pytest
import torch
from benchmarks.framework.record import Context
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


def test_the_cost_of_an_image_is_the_difference_of_two_batches(seed):
    cell = random_cell("activations", classes=7, norm="ws", encode="repeat")
    figures = scale.measure(cell, Context("short"))
    real = [scale.counted(cell, batch) for batch in (1, 2)]
    with scale.without_values():
        fake = [scale.simulated(cell, batch) for batch in (1, 2)]
    for seen, simulated in zip(real, fake, strict=True):
        assert seen["held"] == simulated["held"] < simulated["peak"] <= seen["peak"], cell
    assert figures["held"] == real[1]["held"] - real[0]["held"]
    assert figures["peak"] == fake[1]["peak"] - fake[0]["peak"]
    assert figures["peak"] + figures["fixed"] == fake[0]["peak"]
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
