"""States in SpikingJelly's way: single steps, reset, detach, explicit states, step modes."""

import copy

import pytest
import torch
from cells import conv_cell, conv_input, conv_levels, difference, linear_levels, loss_of, twin
from torch import nn

from sj_ext import host, parameter_groups
from sj_ext.layer import TemporalReversible


def linear_cell(**options):
    return TemporalReversible(linear_levels(), [0.5, 0.8, -0.6], **options)


@pytest.mark.parametrize("memory", ["reversible", "autograd"])
def test_single_steps_are_the_sequence(memory):
    cell = conv_cell(memory=memory)
    cell.eval()
    x = conv_input(6)
    wanted = cell(x)
    last = cell.states
    host.functional.reset_net(cell)
    assert cell.states == (None, None, None)
    cell.step_mode = "s"
    steps = torch.stack([cell(step) for step in x])
    torch.testing.assert_close(steps, wanted)
    for found, state in zip(cell.states, last, strict=True):
        torch.testing.assert_close(found, state)


def test_gradients_run_through_single_steps():
    cell, x = linear_cell(), torch.randn(6, 3, 6)
    whole = twin(cell)
    cell.step_mode = "s"
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    loss_of(torch.stack([cell(step) for step in leaves[0]]), cell.states).backward()
    loss_of(whole(leaves[1]), whole.states).backward()
    grads = [{"input": leaf.grad} | {n: p.grad for n, p in net.named_parameters()}
             for leaf, net in zip(leaves, (cell, whole), strict=True)]  # fmt: skip
    assert difference(*grads) < 1e-5


def test_detach_cuts_the_gradient_between_calls():
    """Truncated backpropagation: each call's gradient is that of a start from a given state."""
    cell, x = linear_cell(), torch.randn(2, 4, 3, 6)
    oracle = twin(cell)
    for net in (cell, oracle):
        for part in x:
            loss_of(net(part), net.states).backward()
            host.functional.detach_net(net)
            assert not any(u.requires_grad for u in net.states)
    grads = [{n: p.grad for n, p in net.named_parameters()} for net in (cell, oracle)]
    assert difference(*grads) < 1e-5


def test_reset_starts_from_rest_twice_in_a_row():
    cell, x = linear_cell(), torch.randn(3, 2, 6)
    wanted = cell(x)
    assert not torch.equal(cell(x), wanted)
    host.functional.reset_net(cell)
    host.functional.reset_net(cell)
    assert torch.equal(cell(x), wanted)


def test_columns_go_on_where_the_last_call_stopped():
    cell = TemporalReversible([linear_levels() for _ in range(4)], [[0.5] * 3] * 4)
    x = torch.randn(4, 2, 6)
    wanted = cell(x)
    cell.reset()
    torch.testing.assert_close(torch.cat([cell(x[:1]), cell(x[1:])]), wanted)
    cell.reset()
    cell.step_mode = "s"
    torch.testing.assert_close(torch.stack([cell(step) for step in x]), wanted)


def test_set_step_mode_reaches_the_cell_and_leaves_its_levels_alone():
    """A level sees one step at a time in both modes."""

    class Level(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = host.layer.Conv2d(3, 4, 3, padding=1)
            self.node = host.neuron.IFNode(v_reset=None)

        def forward(self, below, above):
            assert self.conv.step_mode == self.node.step_mode == "s"
            return self.conv(below)

    net = nn.Sequential(TemporalReversible([Level()], [0.5]), host.neuron.LIFNode())
    for mode, shape in (("m", (5, 2, 3, 4, 4)), ("s", (2, 3, 4, 4))):
        host.functional.set_step_mode(net, mode)
        assert [m.step_mode for m in net] == [mode, mode]
        host.functional.reset_net(net)
        assert net(torch.randn(shape)).shape == (*shape[:-3], 4, *shape[-2:])


def test_states_follow_to():
    cell = linear_cell()
    with torch.no_grad():
        cell(torch.randn(2, 3, 6))
    cell.double()
    assert all(u.dtype == torch.float64 for u in cell.states)
    assert cell(torch.randn(2, 3, 6, dtype=torch.float64)).dtype == torch.float64


def test_deepcopy_and_state_dict():
    columns = TemporalReversible([conv_levels() for _ in range(2)], [[0.5] * 3, [0.4] * 3])
    other = TemporalReversible([conv_levels() for _ in range(2)], [[0.1] * 3, [0.2] * 3])
    columns.eval(), other.eval()
    x = conv_input(2)
    other.load_state_dict(columns.state_dict())
    wanted = columns(x)
    assert torch.equal(other(x), wanted)
    columns.reset()
    assert torch.equal(copy.deepcopy(columns)(x), wanted)
    assert {"levels.1.2.down.weight", "decays.1.0"} <= columns.state_dict().keys()


def test_a_parameter_given_as_decay_is_used_and_may_be_shared():
    decay = nn.Parameter(torch.tensor(0.7))
    cell = TemporalReversible(linear_levels(), [decay, decay, 0.5])
    assert cell.decays[0] is decay
    oracle = twin(cell)
    assert oracle.decays[0] is oracle.decays[1]
    x = torch.randn(5, 3, 6)
    for net in (cell, oracle):
        loss_of(net(x), net.states).backward()
    torch.testing.assert_close(decay.grad, oracle.decays[0].grad, rtol=1e-4, atol=1e-5)


def test_decays_as_one_tensor():
    cell = TemporalReversible(linear_levels(), torch.tensor([0.5, 0.6, 0.7]))
    assert [a.item() for a in cell.decays] == pytest.approx([0.5, 0.6, 0.7])
    table = torch.rand(3, 3) + 0.1
    cell = TemporalReversible(linear_levels(), table)
    assert torch.equal(torch.stack([torch.cat(list(row)) for row in cell.decays]), table)


@pytest.mark.parametrize("decays", [[0.5] * 3, [[0.5] * 3, [0.4] * 3]])
def test_weight_decay_leaves_the_decays_alone(decays):
    cell = TemporalReversible(linear_levels(), decays)
    _, without = parameter_groups(cell, weight_decay=0.1, without=("neuron", "named"))
    assert {id(p) for p in without["params"]} == {id(p) for p in cell.decays.parameters()}


def test_repr_tells_how_it_is_set_up():
    text = repr(linear_cell())
    assert "num_levels=3" in text
    assert "memory='reversible'" in text


@pytest.mark.parametrize("mode", ["s", "m"])
def test_forward_over_explicit_states(mode):
    """2.x calls modules over explicit states; the same functions are there on both hosts."""
    cell, x = linear_cell(), torch.randn(4, 3, 6)
    wanted = cell(x).detach()
    cell.reset()
    states = (*cell.states, 0)
    if mode == "m":
        (y,), states = cell.multi_step_functional_forward((x,), states)
    else:
        steps = []
        for step in x:
            (u,), states = cell.single_step_functional_forward((step,), states)
            steps.append(u)
        y = torch.stack(steps)
    torch.testing.assert_close(y, wanted)
    assert cell.states == (None, None, None)
    assert states[-1] == 4
