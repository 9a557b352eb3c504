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


def test_another_optimizer_in_the_middle_counts():
    for given in (False, True):
        model = mlp()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = MinimaxPruner(model, budget=0.5, first=True, optimizer=opt if given else None)
        for i in range(8):
            if i == 4:
                opt = torch.optim.Adam(model.parameters(), lr=0.01)
            opt.zero_grad()
            model(torch.rand(4, 12)).square().sum().backward()
            opt.step()
            assert pruner.step()
        # its learning rate is that of the proximal step now
        assert pruner._counter.rates() == (
            {id(p): 0.01 for p in model.parameters()} if given else {}
        )


def test_an_optimizer_given_anew_by_hand():
    model = mlp()
    pruner = MinimaxPruner(
        model, budget=0.5, first=True, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    pruner.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    assert set(pruner._counter.rates().values()) == {0.01}


def test_optimizers_of_other_parameters_and_without_gradients_do_not_count():
    model, other = mlp(), mlp()
    pruner = MinimaxPruner(model, budget=0.5, first=True)
    for module in (model, other):
        module(torch.rand(4, 12)).square().sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    biases = [p for p in model.parameters() if p.dim() == 1]
    torch.optim.SGD(biases, lr=0.1).step()
    assert not pruner.step()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    optimizer.zero_grad()
    optimizer.step()
    assert not pruner.step() and pruner.steps_done == 0


def test_two_optimizers_that_share_the_layers_are_one_step():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.5, first=True)
    pair = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    for _ in range(3):
        model(torch.rand(4, 12)).square().sum().backward()
        for optimizer in pair:
            optimizer.step()
        assert pruner.step() and not pruner.step()
    assert pruner.steps_done == 3


def test_accelerates_wrapper_counts():
    accelerate = pytest.importorskip("accelerate")
    model = mlp()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, opt = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    pruner = MinimaxPruner(model, budget=0.5, first=True, optimizer=opt)
    advanced = []
    for _ in range(6):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.rand(4, 12)).square().sum())
            opt.step()
            opt.zero_grad()
            advanced.append(pruner.step())
    assert advanced == [False, True] * 3
    assert set(pruner._counter.rates().values()) == {0.1}


def test_writes_through_data_count():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.5, first=True)
    for i in range(6):
        model.zero_grad()
        model(torch.rand(4, 12)).square().sum().backward()
        if i % 2:
            for p in model.parameters():
                p.data = p.data - 0.1 * p.grad if i % 4 == 1 else p.data.add_(-0.1 * p.grad)
        assert pruner.step() == bool(i % 2)


def test_changes_that_no_optimizer_made_are_said_after_a_few():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.5, first=True)
    model(torch.rand(4, 12)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert pruner.step()
    for _ in range(4):
        move(model)
        assert not pruner.step()
    move(model)
    with pytest.warns(UserWarning, match=r"Step with an optimizer"):
        pruner.step()


def test_nan_is_never_the_best():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.5, first=True, schedule=20)
    while pruner.phase == "compress":
        move(model)
        pruner.step()
    nan = float("nan")
    got = [pruner.score(value) for value in (nan, 0.2, nan, torch.tensor(0.5), torch.tensor(nan))]
    assert got == [False, True, False, True, False]
