"""After the masks are closed zeros hold, whatever the training loop does."""

import itertools

import pytest
import torch
from pruning.nets import mlp, move, narrow_vgg
from torch import nn

from sj_ext.pruning import MinimaxPruner, density

OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "Adam, foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.9),
    "Rprop": lambda p: torch.optim.Rprop(p, 1e-3),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def zeros(model):
    return [p == 0 for p in model.parameters() if p.dim() > 1]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def train(model, optimizer, steps, pruner=None):
    x, target = torch.rand(16, 12), torch.randint(6, (16,))

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        if pruner is not None:
            pruner.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_the_pruner_under_any_optimizer(name):
    model = mlp()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=24)
    train(model, optimizer, 24, pruner)
    assert pruner.finished
    want, before = zeros(model), [p.detach().clone() for p in model.parameters()]
    del pruner
    train(model, optimizer, 5)
    assert same(zeros(model), want) and density(model) <= 0.3
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    # another optimizer, made later
    train(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), 5)
    assert same(zeros(model), want)


def test_after_weights_that_are_not_zero_are_loaded():
    model, dense = mlp(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=24)
    train(model, optimizer, 24, pruner)
    want = zeros(model)
    model.load_state_dict(dense.state_dict())
    assert not any(zero.any() for zero in zeros(model))
    train(model, optimizer, 1)
    assert same(zeros(model), want)
    model.load_state_dict(dense.state_dict())
    pruner.step()  # or at the pruner's own step, though no optimizer stepped
    train(model, optimizer, 1, pruner)
    assert same(zeros(model), want)


def test_gradients_of_cut_weights_are_zero_and_count_nothing():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=24)
    train(model, torch.optim.SGD(model.parameters(), lr=0.05), 24, pruner)
    model.zero_grad()
    model(torch.rand(5, 12)).square().sum().backward()
    for p in model.parameters():
        if p.dim() > 1:
            assert not p.grad[p == 0].any() and p.grad[p != 0].any()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    alone = torch.stack([p.grad[p != 0].norm() for p in model.parameters()]).norm()
    torch.testing.assert_close(norm, alone)


def test_while_it_compresses_weights_come_back():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=60)
    back = False
    while pruner.phase == "compress":
        held = zeros(model)
        move(model, 0.1)
        pruner.step()
        back |= any(bool((h & ~z).any()) for h, z in zip(held, zeros(model), strict=True))
    assert back


def test_a_layer_that_is_frozen_and_thawed():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=6)
    for p in model.parameters():
        p.requires_grad_(False)
    while not pruner.finished:
        move(model)
        pruner.step()
    for p in model.parameters():
        p.requires_grad_(True)
    want = zeros(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 4)
    assert same(zeros(model), want)


def test_channels_stay_silent_with_their_bias_and_normalisation():
    model = narrow_vgg()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = MinimaxPruner(model, budget=0.5, granularity="channel", schedule=6)
    x = torch.rand(2, 2, 3, 32, 32)

    def once():
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        for m in model.modules():
            if hasattr(m, "reset"):
                m.reset()

    while not pruner.finished:
        once()
        pruner.step()
    for _ in range(3):
        once()
    gone = 0
    for conv, norm in itertools.pairwise(model[0]):
        if isinstance(conv, nn.Conv2d) and conv is not model[0][0]:
            cut = (conv.weight == 0).flatten(1).all(1)
            assert torch.equal(norm.weight == 0, cut) and not norm.bias[cut].any()
            gone += int(cut.sum())
    assert gone
