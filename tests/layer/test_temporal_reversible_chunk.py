"""Several steps undone as one batch: the same gradients, fewer and larger runs of the levels."""

import pytest
import torch
from cells import conv_input, conv_levels, difference, gradients, linear_levels, twin
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.layer import TemporalReversible
from sj_ext.surrogate import Rect


def feedforward(decays=(0.5, 0.9, 0.3), **options):
    dropout = options.pop("dropout", 0.0)
    levels = linear_levels(feedback=False, dropout=dropout)
    return TemporalReversible(levels, list(decays), feedback=False, **options)


@settings(max_examples=25)
@given(
    num_steps=st.integers(1, 9),
    chunk=st.integers(2, 10),
    rectangular=st.booleans(),
    per_step=st.booleans(),
    draw_seed=st.integers(0, 2**31 - 1),
)
def test_gradients_do_not_depend_on_the_chunk(num_steps, chunk, rectangular, per_step, draw_seed):
    torch.manual_seed(draw_seed)
    decays = [[0.2 + float(torch.rand(())) for _ in range(3)] for _ in range(num_steps)]
    cell = feedforward(
        decays if per_step else decays[0],
        chunk=chunk,
        surrogate_function=Rect() if rectangular else host.surrogate.ATan(),
        tolerance=1e-6,
    )
    step_by_step = twin(cell)
    step_by_step.chunk = 1
    x = torch.randn(num_steps, 3, 6)
    y, found = gradients(cell, x)
    y_wanted, wanted = gradients(step_by_step, x)
    torch.testing.assert_close(y, y_wanted)
    assert difference(found, wanted) < 1e-5


def test_dropout_sees_the_same_mask(seed):
    cell = feedforward(dropout=0.5, chunk=4)
    oracle, x = twin(cell), torch.randn(10, 3, 6)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < 1e-5


def test_one_level_needs_no_word_about_feedback(seed):
    level = conv_levels(norm=False)[0]
    level.up = None
    cell = TemporalReversible([level], [0.5], chunk=3)
    oracle, x = twin(cell), conv_input(7)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    assert difference(found, wanted) < 1e-5


def test_a_dial_between_memory_and_calls():
    calls, peaks = [], []
    x = torch.randn(12, 64, 6)
    for chunk in (1, 3, 12):
        cell = feedforward(chunk=chunk)
        count = [0]

        def counting(module, args, count=count):
            count[0] += 1

        cell.levels[1].register_forward_pre_hook(counting)
        _, memory = activation_memory(lambda cell=cell: cell(x).sum().backward())
        calls.append(count[0])
        peaks.append(memory.peak)
    assert calls == [24, 8, 2]
    assert peaks == sorted(peaks)


def test_a_level_that_mixes_up_the_batch_is_noticed():
    class Sum(torch.nn.Module):
        def forward(self, below, above):
            return below.sum(0, keepdim=True)

    with pytest.raises(ValueError, match="one entry per entry of its batch of 4 steps"):
        TemporalReversible([Sum()], [0.5], chunk=4)(torch.randn(8, 3, 6))
