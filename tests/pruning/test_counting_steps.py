"""Only steps of the optimizer advance the pruner."""

import pytest
import torch
from pruning.nets import mlp, move
from torch import nn

from sj_ext.pruning import MinimaxPruner


@pytest.mark.parametrize("given", [False, True], ids=["by weights", "by hook"])
def test_gradient_accumulation_does_not_advance(given):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = MinimaxPruner(model, budget=0.5, first=True, optimizer=opt if given else None)
    advanced = []
    for micro in range(12):
        model(torch.rand(4, 12)).square().sum().backward()
        if micro % 4 == 3:
            opt.step()
            opt.zero_grad()
        advanced.append(pruner.step())
    assert advanced == [False, False, False, True] * 3
    assert pruner.steps_done == 3


@pytest.mark.parametrize("given", [False, True], ids=["by weights", "by hook"])
def test_a_step_that_amp_skips_does_not_advance(given):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    pruner = MinimaxPruner(model, budget=0.5, first=True, optimizer=opt if given else None)
    advanced = []
    for i in range(6):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.rand(4, 12)).float().square().sum()
        scaler.scale(loss).backward()
        if i % 3 == 1:
            next(model.parameters()).grad.fill_(float("inf"))
        scaler.step(opt)
        scaler.update()
        advanced.append(pruner.step())
    assert advanced == [True, False, True] * 2


def test_a_fused_optimizer_that_skips_inside_does_not_advance():
    model = mlp()
    opt = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    pruner = MinimaxPruner(model, budget=0.5, first=True, optimizer=opt)
    advanced = []
    for i in range(4):
        opt.zero_grad()
        scaler.scale(model(torch.rand(4, 12)).square().sum()).backward()
        if i % 2:
            next(model.parameters()).grad.fill_(float("inf"))
        scaler.step(opt)
        scaler.update()
        advanced.append(pruner.step())
    assert advanced == [True, False] * 2


def test_two_calls_after_one_step_count_once():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.5, first=True)
    move(model)
    assert [pruner.step(), pruner.step(), pruner.step()] == [True, False, False]


def test_score_lets_a_stage_go_on_from_its_best_weights():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.5, first=True, schedule=10)
    with torch.no_grad():
        while pruner.phase == "compress":
            move(model)
            pruner.step()
        best = None
        for value in (0.1, 0.9, 0.3):
            move(model)
            pruner.step()
            assert pruner.score(value) == (value in (0.1, 0.9))
            if value == 0.9:
                best = [p.clone() for p in model.parameters()]
        while not pruner.finished:
            move(model)
            pruner.step()
    assert all(torch.equal(a, b) for a, b in zip(best, model.parameters(), strict=True))
    assert isinstance(model[0], nn.Linear)
