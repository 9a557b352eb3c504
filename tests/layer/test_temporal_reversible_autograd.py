"""A good citizen of autograd: grad(), hooks, second backward, gradients that nobody needs."""

import pytest
import torch
from cells import LinearLevel, conv_cell, conv_input, difference, linear_levels, loss_of, twin
from torch import nn

from sj_ext import host
from sj_ext.layer import TemporalReversible
from sj_ext.surrogate import Rect


def linear_cell(**options):
    return TemporalReversible(linear_levels(), [0.5] * 3, **options)


def test_torch_autograd_grad():
    cell, x = conv_cell(), conv_input(4).requires_grad_()
    cell.eval()
    oracle = twin(cell)
    found = []
    for net in (cell, oracle):
        named = dict(net.named_parameters())
        loss = loss_of(net(x), net.states)
        grads = torch.autograd.grad(loss, [x, *named.values()])
        assert all(p.grad is None for p in named.values())
        found.append(dict(zip(["input", *named], grads, strict=True)))
    assert difference(*found) < 1e-5


def test_gradient_hooks_see_one_gradient_for_all_steps():
    cell = linear_cell()
    seen = []
    weight, decay = cell.levels[1].down.weight, cell.decays[1]
    weight.register_hook(lambda g: seen.append(("weight", g.clone())))
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(("accumulated", p.grad)))
    decay.register_hook(lambda g: seen.append(("decay", g.clone())))
    cell(torch.randn(6, 3, 6)).sum().backward()
    assert sorted(name for name, _ in seen) == ["accumulated", "decay", "weight"]
    gradient = dict(seen)
    assert torch.equal(gradient["weight"], weight.grad)
    assert torch.equal(gradient["decay"], decay.grad)


def test_a_second_backward_says_what_to_do():
    cell = linear_cell()
    loss = cell(torch.randn(3, 2, 6)).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"second time.*retain_graph"):
        loss.backward()


def test_a_second_backward_through_a_carried_state_says_what_to_do():
    cell = linear_cell()
    cell(torch.randn(3, 2, 6)).sum().backward()
    with pytest.raises(RuntimeError, match=r"detach_net.*reset_net"):
        cell(torch.randn(3, 2, 6)).sum().backward()


def test_retain_graph_allows_a_second_backward():
    cell = conv_cell()
    loss = cell(conv_input(3)).sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in cell.parameters()]
    loss.backward()
    for p, grad in zip(cell.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * grad)


def test_second_derivatives_are_refused():
    cell, x = linear_cell(), torch.randn(3, 2, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(cell(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_parameter_changed_before_backward_is_noticed():
    cell = linear_cell()
    loss = cell(torch.randn(3, 2, 6)).sum()
    with torch.no_grad():
        cell.levels[0].down.weight.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


@pytest.mark.parametrize("used", ["last step", "first step", "state of level 0", "nothing"])
@pytest.mark.parametrize("surrogate_function", [Rect(), host.surrogate.ATan()])
def test_outputs_without_a_gradient(used, surrogate_function):
    """Only some outputs reach the loss; the others have no gradient at all."""
    cell = conv_cell(surrogate_function=surrogate_function, tolerance=1e-12)
    x = conv_input(5)
    cell.eval()
    oracle = twin(cell)
    found = []
    for net in (cell, oracle):
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        loss = {
            "last step": lambda y=y: y[-1].square().sum(),
            "first step": lambda y=y: y[0].square().sum(),
            "state of level 0": lambda net=net: net.states[0].square().sum(),
            "nothing": lambda y=y: 0 * y.sum(),
        }[used]()
        loss.backward()
        grads = {n: p.grad for n, p in net.named_parameters()}
        found.append({"input": leaf.grad} | {n: g for n, g in grads.items() if g is not None})
    if used == "nothing":
        assert all(not g.any() for g in found[0].values())
        return
    common = found[0].keys() & found[1].keys()
    assert found[1].keys() <= found[0].keys() | {"input"}
    assert difference({n: found[0][n] for n in common}, {n: found[1][n] for n in common}) < 1e-5
    assert all(not found[0][n].any() for n in found[0].keys() - common)


class Calls(LinearLevel):
    """Counts how often it runs with a graph."""

    def __init__(self, *args):
        super().__init__(*args)
        self.with_graph = 0

    def forward(self, below, above):
        self.with_graph += torch.is_grad_enabled()
        return super().forward(below, above)


def test_levels_that_no_gradient_needs_are_not_undone():
    levels = [Calls(6, 8, 8), Calls(8, 8, 8), Calls(8, 8)]
    cell = TemporalReversible(levels, [0.5] * 3)
    for part in (levels[0], levels[1], cell.decays[0], cell.decays[1]):
        part.requires_grad_(False)
    oracle = twin(cell)
    x = torch.randn(5, 3, 6)
    cell(x).square().sum().backward()
    oracle(x).square().sum().backward()
    # What level 2 fires reaches level 1 one step later and level 0 two steps later; before that,
    # nothing that learns lies behind them.
    assert [level.with_graph for level in levels] == [3, 4, 5]
    assert levels[0].down.weight.grad is None
    torch.testing.assert_close(levels[2].down.weight.grad, oracle.levels[2].down.weight.grad)
    torch.testing.assert_close(cell.decays[2].grad, oracle.decays[2].grad)


def test_without_feedback_frozen_levels_below_are_never_undone():
    levels = [Calls(6, 8), Calls(8, 8), Calls(8, 8)]
    cell = TemporalReversible(levels, [0.5] * 3, feedback=False)
    for part in (levels[0], levels[1], cell.decays[0], cell.decays[1]):
        part.requires_grad_(False)
    cell(torch.randn(5, 3, 6)).square().sum().backward()
    assert [level.with_graph for level in levels] == [0, 0, 5]


def test_steps_behind_the_last_gradient_are_not_undone():
    level = Calls(6, 8)
    cell = TemporalReversible([level], [0.5])
    cell(torch.randn(7, 3, 6))[2].sum().backward()
    # The gradient of the whole sequence of outputs is dense, so every step has one.
    assert level.with_graph == 7
    level.with_graph = 0
    cell.reset()
    head, _ = cell(torch.randn(3, 3, 6)), cell(torch.randn(4, 3, 6))
    head.sum().backward()
    assert level.with_graph == 3


def test_frozen_input_gets_no_gradient_and_costs_none():
    asked = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return x @ weight

        @staticmethod
        def backward(ctx, grad):
            asked.append(ctx.needs_input_grad)
            return None, torch.zeros(6, 8)

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))

        def forward(self, below, above):
            return Watch.apply(below, self.weight)

    TemporalReversible([Watched()], [0.5])(torch.randn(3, 2, 6)).sum().backward()
    assert asked == [(False, True)] * 3


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_outputs_are_the_same(context):
    cell, x = conv_cell(), conv_input(4)
    cell.eval()
    wanted = cell(x).detach()
    cell.reset()
    with context():
        y = cell(x)
    assert not y.requires_grad
    assert torch.equal(y, wanted)


def test_training_after_inference_and_a_reset():
    cell, x = conv_cell(), conv_input(2)
    with torch.inference_mode():
        cell(x)
    cell.reset()
    cell(x).sum().backward()
    assert all(p.grad is not None for p in cell.parameters())


def test_weights_cast_by_autocast_keep_their_gradient():
    """A cast that was made without a graph may not serve another layer of the same autocast."""
    cell = TemporalReversible([LinearLevel(6, 6)], [0.5])
    oracle = twin(cell)
    x, z = torch.randn(2, 3, 6), torch.randn(3, 6)
    found = []
    for net in (cell, oracle):
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
            (y.sum() + net.levels[0].down(z).sum()).backward()
        found.append({n: p.grad for n, p in net.named_parameters()})
    assert difference(*found) < 2e-2
