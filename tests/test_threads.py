"""Two networks in two threads compute what they compute one after the other."""

import copy
import sys
import threading
import time

import pytest
import torch
from cells import linear_levels
from torch import nn

from sj_ext import host
from sj_ext.functional import lts_cross_entropy, tet_s_cross_entropy
from sj_ext.layer import TemporalReversible
from sj_ext.model import TRevSNN
from sj_ext.neuron import IMPLIFNode, MultiLevelFiringNode, TurnOffNode, TurnOnNode
from sj_ext.pruning import MinimaxPruner

functional, layer = host.functional, host.layer


@pytest.fixture(autouse=True)
def often():
    """Threads change over at every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*functions):
    """What the functions return, run in a thread each, let go together."""
    results, errors, start = {}, [], threading.Barrier(len(functions))

    def work(index, function):
        try:
            start.wait()
            results[index] = function()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(index, function))
        for index, function in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(functions))]


def neurons():
    net = nn.Sequential(
        layer.Linear(6, 16),
        IMPLIFNode(),
        layer.Linear(16, 16),
        TurnOnNode(),
        layer.Linear(16, 16),
        TurnOffNode(),
        layer.Linear(16, 8),
        MultiLevelFiringNode(),
        layer.Linear(8, 4),
    )
    functional.set_step_mode(net, "m")
    net(torch.randn(2, 3, 6))
    functional.reset_net(net)
    return net, torch.randn(5, 3, 6), tet_s_cross_entropy


def cell(**options):
    def make():
        cell = TemporalReversible(linear_levels((6, 16, 10, 4)), [0.5, 0.9, 0.7], **options)
        return cell, torch.randn(5, 3, 6), lts_cross_entropy

    return make


def model():
    net = TRevSNN((4, 6, 8, 10), 4, 2, norm="bn")
    return net, torch.randn(2, 3, 32, 32), tet_s_cross_entropy


MAKERS = {
    "neurons": neurons,
    "reversible": cell(),
    "reversible, rebuilt": cell(surrogate_function=host.surrogate.ATan()),
    "reversible, chunks": lambda: (
        TemporalReversible(
            linear_levels((6, 16, 4), feedback=False), [0.5, 0.9], feedback=False, chunk=2
        ),
        torch.randn(5, 3, 6),
        lts_cross_entropy,
    ),
    "model": model,
}


def train(net, x, loss, prune=False):
    """Three steps of an optimizer, and every loss and parameter after them."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = None
    if prune:
        pruner = MinimaxPruner(net, budget=0.8, schedule=4, first=True, optimizer=optimizer)
    losses = []
    for _ in range(4):
        functional.reset_net(net)
        optimizer.zero_grad()
        target = torch.arange(x.shape[1] if x.dim() == 3 else len(x)) % 4
        value = loss(net(x), target)
        value.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
        losses.append(value.detach())
    return [*losses, *(p.detach().clone() for p in net.parameters())]


@pytest.mark.parametrize("prune", [False, True], ids=["", "pruned"])
@pytest.mark.parametrize("name", MAKERS)
def test_two_networks_in_two_threads(name, prune):
    jobs = [(*MAKERS[name](), prune), (*MAKERS["reversible"](), False)]
    one_by_one = [train(copy.deepcopy(net), *rest) for net, *rest in jobs]
    for _ in range(3):
        together = at_once(
            *(lambda job=job: train(copy.deepcopy(job[0]), *job[1:]) for job in jobs)
        )
        for found, wanted in zip(together, one_by_one, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class Masked(nn.Module):
    """A level that drops out, and remembers which of its inputs it dropped."""

    def __init__(self, below, features):
        super().__init__()
        self.linear = nn.Linear(below, features)
        self.masks = []

    def forward(self, below, above):
        time.sleep(1e-4)  # long enough for the other thread to draw, if it may
        kept = nn.functional.dropout(torch.ones_like(below), 0.5)
        self.masks.append(kept)
        return self.linear(below * kept)


def masks_of(net, x):
    for _ in range(6):
        net.reset()
        net(x).sum().backward()
    return [level.masks for level in net.levels]


def test_levels_in_two_threads_drop_the_same_when_they_are_undone():
    """Both draw from the CPU's one generator; what a level drew is drawn again all the same."""
    nets = [
        TemporalReversible([Masked(8, 8), Masked(8, 4)], [0.5, 0.9], replay_tolerance=None)
        for _ in range(2)
    ]
    x = torch.randn(6, 5, 8)  # drawn now: what draws outside of cells must not do so meanwhile
    found = at_once(*(lambda net=net: masks_of(net, x) for net in nets))
    for by_level in found:
        for masks in by_level:
            forward = [mask for i, mask in enumerate(masks) if i // 6 % 2 == 0]
            undone = [mask for i, mask in enumerate(masks) if i // 6 % 2 == 1]
            assert len(forward) == len(undone) == 36
            for call in range(6):
                there, back = (m[6 * call : 6 * call + 6] for m in (forward, undone))
                assert all(torch.equal(a, b) for a, b in zip(there, back[::-1], strict=True))


def test_inference_in_two_threads_waits_for_nobody():
    """A level of one cell runs while one of the other's does."""
    both = threading.Barrier(2, timeout=20)

    class Meets(nn.Module):
        def forward(self, below, above):
            both.wait()
            return below

    @torch.no_grad()
    def infer():
        return TemporalReversible([Meets()], [0.5])(torch.ones(3, 2, 4))

    for u_top in at_once(infer, infer):
        assert u_top[:, 0, 0].tolist() == [1.0, 1.5, 1.75]


def test_pruners_come_and_go_in_threads_that_train():
    """Their masks and their ears for optimizers' steps are lists of the whole process."""

    def several():
        for _ in range(12):
            net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
            pruner = MinimaxPruner(net, budget=0.4, first=True, schedule=2)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for _ in range(4):
                optimizer.zero_grad()
                net(torch.rand(4, 6)).sum().backward()
                optimizer.step()
                pruner.step()
            assert pruner.finished

    at_once(*[several] * 4)
