"""What a level or a caller may not do is told, never silently wrong."""

import pytest
import torch
from cells import LinearLevel, conv_levels, linear_levels
from torch import nn

from sj_ext import host
from sj_ext.layer import TemporalReversible
from sj_ext.surrogate import Rect


class Function(nn.Module):
    """A level made of a function."""

    def __init__(self, function, below=6, features=8):
        super().__init__()
        self.linear, self.function = nn.Linear(below, features), function

    def forward(self, below, above):
        return self.function(self, below, above)


def cell_of(function, **options):
    return TemporalReversible([Function(function), LinearLevel(8, 5)], [0.5] * 2, **options)


X = (4, 3, 6)


@pytest.mark.parametrize("memory", ["reversible", "autograd"])
def test_output_shape_that_changes_over_time(memory):
    calls = []

    def function(self, below, above):
        calls.append(1)
        return self.linear(below)[: 3 - len(calls) // 2]

    with pytest.raises(ValueError, match=r"level 0 returned shape \[2, 8\].*state has shape"):
        TemporalReversible([Function(function)], [0.5], memory=memory)(torch.randn(X))


def test_a_new_batch_size_needs_a_reset():
    cell = TemporalReversible(linear_levels(), [0.5] * 3)
    cell(torch.randn(2, 3, 6))
    with pytest.raises(ValueError, match=r"\[4, 6\].*state carried over.*\[3, 16\].*reset_net"):
        cell(torch.randn(2, 4, 6))
    host.functional.reset_net(cell)
    assert cell(torch.randn(2, 4, 6)).shape == (2, 4, 5)


@pytest.mark.parametrize("output", [torch.ones(3, 8, dtype=torch.long), None, (torch.ones(3, 8),)])
def test_output_that_is_no_floating_point_tensor(output):
    with pytest.raises(TypeError, match="level 0 .* floating point tensor"):
        cell_of(lambda self, below, above: output)(torch.randn(X))


@pytest.mark.parametrize("memory", ["reversible", "autograd"])
@pytest.mark.parametrize("which", ["below", "above"])
def test_inputs_changed_in_place(which, memory):
    def function(self, below, above):
        changed = {"below": below, "above": above}[which]
        if changed is not None:
            changed.mul_(0.5)
        return self.linear(below)

    cell = TemporalReversible([Function(function), LinearLevel(8, 5)], [0.5] * 2, memory=memory)
    with pytest.raises(RuntimeError, match=r"level 0 \(Function\) changed one of its inputs"):
        cell(torch.randn(X))


@pytest.mark.parametrize(
    "decays",
    [[0.5, 1e-4, 0.5], [0.5, 0.0, 0.5], [float("nan"), 0.5, 0.5], [float("inf"), 0.5, 0.5],
     [torch.tensor([[0.5] * 15 + [-1e-5]]), 0.5, 0.5], [[0.5] * 3, [0.5, 0.5, 0.0]]],
)  # fmt: skip
def test_decays_below_the_minimum(decays):
    with pytest.raises(ValueError, match=r"decays must be finite .* at least min_decay=0.001"):
        TemporalReversible(linear_levels(), decays)


def test_the_least_decay_itself_is_allowed():
    TemporalReversible(linear_levels(), [0.001, torch.tensor(-0.001), torch.tensor([0.001])])


@pytest.mark.parametrize(
    ("decays", "error"),
    [([0.5, 0.5], ValueError), ([0.5] * 4, ValueError), ([[0.5] * 3, [0.5]], ValueError),
     (0.5, TypeError), ([], TypeError), (["a", 0.5, 0.5], TypeError), ([True, 0.5, 0.5], TypeError),
     ([torch.tensor(1), 0.5, 0.5], TypeError), ([0.5, [0.5] * 3, 0.5], TypeError),
     (torch.tensor(0.5), TypeError)],
)  # fmt: skip
def test_decays_that_do_not_fit_the_levels(decays, error):
    with pytest.raises(error, match="decays"):
        TemporalReversible(linear_levels(), decays)


@pytest.mark.parametrize("shape", [(4,), (2, 16), (1, 1, 1), (3, 2, 16)])
def test_a_decay_that_does_not_broadcast_to_the_state(shape):
    cell = TemporalReversible(linear_levels(), [torch.full(shape, 0.5), 0.5, 0.5])
    with pytest.raises(ValueError, match=r"decay of level 0 has shape .* does not broadcast"):
        cell(torch.randn(2, 3, 6))


@pytest.mark.parametrize(
    "levels", [[], nn.Linear(2, 2), [torch.relu], [[nn.Identity()], nn.Identity()], "levels"]
)
def test_levels_that_are_no_modules(levels):
    with pytest.raises(TypeError, match="levels must"):
        TemporalReversible(levels, [0.5])


def test_columns_of_different_heights():
    with pytest.raises(ValueError, match=r"levels must have the same number.*\[3, 2\]"):
        TemporalReversible([linear_levels(), linear_levels()[:2]], [0.5] * 3)


def test_more_steps_than_columns():
    cell = TemporalReversible([linear_levels() for _ in range(3)], [0.5] * 3)
    cell(torch.randn(2, 2, 6))
    with pytest.raises(ValueError, match=r"entries for 3 steps, but step 4 .*reset_net"):
        cell(torch.randn(2, 2, 6))
    cell.reset()
    with pytest.raises(ValueError, match="levels has entries for 3 steps"):
        cell(torch.randn(4, 2, 6))
    with pytest.raises(ValueError, match="decays must have one row per step, that is 3"):
        TemporalReversible([linear_levels() for _ in range(3)], [[0.5] * 3] * 2)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"memory": "flat"}, ValueError), ({"chunk": 0}, ValueError), ({"chunk": 1.5}, TypeError),
     ({"tolerance": 0}, ValueError), ({"tolerance": float("nan")}, ValueError),
     ({"replay_tolerance": -1}, ValueError), ({"min_decay": 0}, ValueError),
     ({"min_decay": "1"}, TypeError), ({"v_threshold": None}, TypeError),
     ({"surrogate_function": 3}, TypeError), ({"step_mode": "x"}, ValueError)],
)  # fmt: skip
def test_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        TemporalReversible(linear_levels(), [0.5] * 3, **options)


def test_a_surrogate_that_gives_no_spikes():
    cell = TemporalReversible(linear_levels(), [0.5] * 3, surrogate_function=Rect(spiking=False))
    with pytest.raises(ValueError, match="surrogate_function must be in spiking mode"):
        cell(torch.randn(2, 3, 6))


@pytest.mark.parametrize(
    ("x", "error"),
    [(torch.randn(4), ValueError), (torch.randn(0, 3, 6), ValueError), ([], ValueError),
     (3, TypeError), ([torch.randn(3, 6), None], TypeError)],
)  # fmt: skip
def test_inputs(x, error):
    with pytest.raises(error, match="x_seq must"):
        TemporalReversible(linear_levels(), [0.5] * 3)(x)


def keeps_a_state(self, below, above):
    self.kept = self.linear(below).detach() + getattr(self, "kept", 0)
    return self.linear(below) + self.kept


def draws_elsewhere(self, below, above):
    import numpy

    return self.linear(below) * torch.from_numpy(numpy.random.rand(8).astype("float32"))


def counts(self, below, above):
    self.count = getattr(self, "count", 0) + 1
    return self.linear(below) * self.count


@pytest.mark.parametrize("function", [keeps_a_state, draws_elsewhere, counts])
def test_levels_that_are_not_deterministic(function):
    y = cell_of(function)(torch.randn(X))
    with pytest.raises(RuntimeError, match=r"level 0 \(Function\) gave another output"):
        y.sum().backward()
    cell_of(function, memory="autograd")(torch.randn(X)).sum().backward()


def test_another_output_shape_while_undoing():
    def function(self, below, above):
        out = self.linear(below)
        return out if not torch.is_grad_enabled() else out[:1]

    y = cell_of(function)(torch.randn(X))
    with pytest.raises(RuntimeError, match=r"another output .*shape \[1, 8\]"):
        y.sum().backward()


def test_a_leaky_host_neuron_inside_a_level_is_noticed():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.node = nn.Linear(6, 8), host.neuron.LIFNode()

        def forward(self, below, above):
            return self.linear(below) + self.node(4 * self.linear(below))

    y = TemporalReversible([Leaky()], [0.5])(torch.randn(6, 3, 6))
    with pytest.raises(RuntimeError, match="gave another output"):
        y.sum().backward()


def test_train_turned_to_eval_before_backward_is_noticed():
    cell = TemporalReversible(conv_levels(), [0.5] * 3)
    y = cell(torch.randn(3, 2, 3, 8, 8))
    cell.eval()
    with pytest.raises(RuntimeError, match="gave another output"):
        y.sum().backward()


def test_the_check_can_be_turned_off():
    y = cell_of(counts, replay_tolerance=None)(torch.randn(X))
    y.sum().backward()


def test_outputs_that_are_not_finite_are_the_same_output():
    def function(self, below, above):
        return self.linear(below) * torch.tensor([1, float("inf"), float("nan")] + [1] * 5)

    cell_of(function)(torch.randn(X)).sum().backward()


def test_a_tensor_from_elsewhere_whose_gradient_would_be_lost():
    scale = nn.Parameter(torch.ones(8))
    y = cell_of(lambda self, below, above: self.linear(below) * scale)(torch.randn(X))
    with pytest.raises(RuntimeError, match="neither one of its inputs nor one of its parameters"):
        y.sum().backward()


def test_chunks_only_where_steps_do_not_wait_for_each_other():
    with pytest.raises(ValueError, match=r"chunk must be 1 for levels with feedback, got 2"):
        TemporalReversible(linear_levels(), [0.5] * 3, chunk=2)
    with pytest.raises(ValueError, match=r"chunk must be 1 for levels with feedback, got 3"):
        TemporalReversible(linear_levels(), [0.5] * 3).chunk = 3
    with pytest.raises(ValueError, match=r"chunk must be 1 where every step has levels"):
        TemporalReversible([linear_levels()] * 2, [0.5] * 3, chunk=2, feedback=False)
    cell = TemporalReversible(conv_levels()[:1], [0.5], chunk=2)
    with pytest.raises(ValueError, match=r"batch statistics.*levels.0.norm"):
        cell(torch.randn(4, 2, 3, 8, 8))
    cell.eval()
    cell(torch.randn(4, 2, 3, 8, 8))
