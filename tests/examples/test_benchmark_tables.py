"""What the tables measure with is right: peers, oracles and counts."""

import copy
from fractions import Fraction

import pytest
import torch
from benchmarks.framework.record import Context
from benchmarks.lib import peers
from benchmarks.tables import complexity, imp_figures, memory, reversal_error

from sj_ext import host
from sj_ext.model import TRevSNN


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_naive_inversion_is_right_where_inversion_is(decay):
    """In float64 and over few steps division loses nothing that matters."""
    net = reversal_error.build(decay).double()
    x_seq = torch.randn(3, 2, 3, 8, 8, dtype=torch.float64)
    weight = torch.randn(3, 2, reversal_error.CHANNELS[-1], 2, 2, dtype=torch.float64)
    found, wrong = reversal_error.naive_gradients(net, x_seq, weight)
    plain = copy.deepcopy(net)
    plain.memory = "autograd"
    assert wrong == 0
    assert reversal_error.relative(found, reversal_error.gradients(plain, x_seq, weight)) < 1e-10


def test_a_small_decay_is_too_much_for_naive_inversion():
    figures = reversal_error.measure({"decay": 0.01, "T": 8, "seed": 0}, Context())
    assert figures["naive"] > 1e-2 and figures["naive_wrong_spikes"] > 0
    assert figures["reversible"] < 1e-3 or figures["forward_flips"]


@pytest.mark.parametrize("v_init", [Fraction(0), Fraction(1, 4)])
def test_the_exact_count_of_patterns_is_that_of_a_fine_grid(v_init):
    """240 is a multiple of every denominator at which something can change, and of twice those."""
    inputs = [tuple((i >> k) & 1 for k in range(4)) for i in range(16)]
    grid = [Fraction(k, 480) for k in range(481)]
    pairs = {(x, imp_figures._fire(v_init, weight, x)) for weight in grid for x in inputs}
    assert imp_figures.exact((v_init, v_init)) == len(pairs)


def test_more_patterns_can_occur_than_on_a_grid():
    for name, (_, _, interval) in imp_figures.MAPPINGS.items():
        figures = imp_figures.measure({"part": "mapping", "v_init": name}, Context())
        on_grid = sum(map(sum, figures["grid"]))
        assert on_grid <= imp_figures.exact(interval) == figures["exact"]


@pytest.mark.parametrize("way", list(complexity.WAYS))
def test_operations_of_a_forward_pass_are_counted_exactly(way):
    depth, num_steps = 2, 3
    figures = complexity.measure({"way": way, "L": depth, "T": num_steps}, Context())
    channels, pixels = complexity.CHANNELS, complexity.BATCH * complexity.SIDE**2
    convolution = 2 * pixels * channels**2 * 9
    if way == "reversible blocks":  # two convolutions between halves of the channels
        convolution //= 2
    assert figures["inference_flops"] == convolution * depth * num_steps
    # the first layer's input needs no gradient; OTTT convolves spikes and, above the first, traces
    first = {"STBP": 1, "SLTT": 1, "checkpoints": 1, "OTTT": 2}.get(way)
    passes = {"STBP": 3, "SLTT": 3, "OTTT": 4}.get(way, 4)
    if first is not None:
        wanted = (passes * depth - first) * convolution * num_steps
        assert figures["training_flops"] == wanted
    else:
        assert 3 < figures["training_flops"] / figures["inference_flops"] <= passes


def test_the_fit_finds_the_orders():
    wanted = torch.rand(4).tolist()
    rows = [
        {
            "cell": {"L": depth, "T": t},
            "figures": {
                "peak": sum(c * x for c, x in zip(wanted, (1, depth, t, depth * t), strict=True))
            },
        }
        for depth in (1, 2, 5)
        for t in (2, 3, 7)
    ]
    assert complexity.slopes(rows) == pytest.approx(wanted)


@pytest.mark.parametrize("name", [*peers.OURS, *peers.PEERS])
def test_networks_train_for_as_many_steps_as_asked(name):
    cell = {"network": name, "memopt": False, "T": 2, "side": 32}
    net = memory.build(cell, "cpu")
    seen = []
    node = next(m for m in net.modules() if isinstance(m, host.neuron.LIFNode | TRevSNN))
    node.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    images, target = memory.batch_of(net, 2, 32)
    peers.loss(net, images, target).backward()
    assert seen and set(seen) == {2}
    assert all(p.grad is not None for p in net.parameters())


def test_the_short_table_of_memory_rises_with_the_steps():
    cells = [c for c in memory.cells("short") if c["network"] == "SEW-ResNet-18" and c["T"] < 4]
    plain = [c for c in cells if not c["memopt"] and not c.get("compact")]
    found = []
    for cell in sorted(plain, key=lambda cell: cell["T"]):
        net = memory.build(cell, "cpu")
        small, large = (memory.count(net, batch, cell["side"]) for batch in cell["batches"])
        found.append([b - a for a, b in zip(small, large, strict=True)])
    one, two = found
    assert all(1.5 * a < b < 2.5 * a for a, b in zip(one, two, strict=True))
