"""A fault while levels are run or undone passes through, and leaves everything as it was."""

import copy

import pytest
import torch
from cells import conv_cell, conv_input, difference, gradients, loss_of, twin
from torch import nn

from sj_ext.model import TRevSNN

STEPS, LEVELS = 3, 3
#: a message as CUDA's allocator writes it
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


class _Fault(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError(FULL)


class Faulty:
    """Lets the call number ``at`` of a cell's levels fail: itself, or its backward pass."""

    def __init__(self, modules, at, where):
        self.calls, self.at, self.where = 0, at, where
        self.handles = [m.register_forward_hook(self.hook) for m in modules]

    def hook(self, module, inputs, output):
        self.calls += 1
        if self.calls - 1 != self.at:
            return output
        if self.where == "its backward pass":
            return _Fault.apply(output)
        raise torch.OutOfMemoryError(FULL)

    def remove(self):
        for handle in self.handles:
            handle.remove()


def condition(module):
    """Everything that a pass must put back; tensors by identity, version and value."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {
        "tensors": {name: (id(t), t.detach().clone()) for name, t in tensors.items()},
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "training": {name: m.training for name, m in module.named_modules()},
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    }


def assert_same_condition(found, wanted):
    for name, (identity, value) in wanted["tensors"].items():
        assert found["tensors"][name][0] == identity, name
        assert torch.equal(found["tensors"][name][1], value), name
    assert torch.equal(found.pop("random"), wanted.pop("random"))
    for key in ("gradients", "training", "grad mode", "autocast"):
        assert found[key] == wanted[key], key


@pytest.mark.parametrize("where", ["the replay", "its backward pass"])
@pytest.mark.parametrize("at", range(STEPS * LEVELS))
def test_out_of_memory_while_undoing(at, where, seed):
    """At every level and step; batch normalisation and dropout are inside the levels."""
    cell, x = conv_cell(), conv_input(STEPS)
    cell.levels[1].dropout.eval()  # flags that differ must not be evened out
    fresh = copy.deepcopy(cell)
    loss = loss_of(cell(x), cell.states)
    before = condition(cell)
    fault = Faulty(cell.levels, at, where)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=False),
        pytest.raises(torch.OutOfMemoryError, match=FULL),
    ):
        loss.backward()
    assert fault.calls == at + 1, "the fault did not come from undoing"
    fault.remove()
    assert_same_condition(condition(cell), before)

    cell.reset()
    fresh(x)  # statistics of the first forward pass stand, as they do on plain autograd
    fresh.reset()
    y, found = gradients(cell, x, seed)
    expected, wanted = gradients(twin(fresh), x, seed)
    torch.testing.assert_close(y, expected)
    assert difference(found, wanted) < 1e-5


def test_the_same_graph_can_be_tried_again(seed):
    """Smaller work may fit after all: the records outlive a pass that failed."""
    cell, x = conv_cell(), conv_input(STEPS)
    oracle = twin(cell)
    torch.manual_seed(seed)
    loss = loss_of(cell(x), cell.states)
    fault = Faulty(cell.levels, 4, "the replay")
    with pytest.raises(torch.OutOfMemoryError):
        loss.backward(retain_graph=True)
    fault.remove()
    loss.backward()
    _, wanted = gradients(oracle, x, seed)
    wanted.pop("input")
    assert difference({n: p.grad for n, p in cell.named_parameters()}, wanted) < 1e-5


@pytest.mark.parametrize("at", [0, 4, STEPS * LEVELS - 1])
@pytest.mark.parametrize("memory", ["reversible", "autograd"])
def test_out_of_memory_in_the_forward_pass(memory, at, seed):
    cell, x = conv_cell(memory=memory), conv_input(STEPS)
    cell(x)
    states, random = cell.states, torch.get_rng_state()
    fault = Faulty(cell.levels, at, "the replay")
    with pytest.raises(torch.OutOfMemoryError, match=FULL):
        cell(x)
    fault.remove()
    assert all(a is b for a, b in zip(cell.states, states, strict=True))
    # numbers that were drawn before the fault are gone, as in any other module
    assert not torch.equal(torch.get_rng_state(), random) or at == 0
    cell.reset()
    y, found = gradients(cell, x, seed)
    assert y.isfinite().all() and all(g.isfinite().all() for g in found.values())


class Keyboard(nn.Module):
    """Not an Exception: what a signal raises in the middle of a pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.pressed = inner, False

    def forward(self, below, above):
        if self.pressed:
            raise KeyboardInterrupt
        return self.inner(below, above)


def test_a_signal_while_undoing(seed):
    cell, x = conv_cell(), conv_input(STEPS)
    level = cell.levels[1] = Keyboard(cell.levels[1])
    loss = loss_of(cell(x), cell.states)
    before = condition(cell)
    level.pressed = True
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    level.pressed = False
    assert_same_condition(condition(cell), before)
    cell.reset()
    _, found = gradients(cell, x, seed)
    assert all(g.isfinite().all() for g in found.values())


@pytest.mark.parametrize("norm", ["ws", "bn"])
def test_trevsnn_trains_on_after_a_fault(norm, seed):
    net = TRevSNN((4, 4, 6, 8), 5, 2, norm=norm)
    x = torch.randn(3, 3, 32, 32)
    fresh = copy.deepcopy(net)
    loss = net(x).square().sum()
    fault = Faulty([level for column in net.cell.levels for level in column], 3, "the replay")
    with pytest.raises(torch.OutOfMemoryError, match=FULL):
        loss.backward()
    fault.remove()
    net.zero_grad()
    fresh(x)
    for one in (net, fresh):
        torch.manual_seed(seed)
        one(x).square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, a), b in zip(net.named_buffers(), fresh.buffers(), strict=True):
        assert torch.equal(a, b), name
