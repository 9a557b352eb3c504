"""What a forward pass changes is changed once, and undoing leaves no trace."""

import torch
from cells import LinearLevel, conv_cell, conv_input, gradients, linear_levels, twin
from torch import nn

from sj_ext import host
from sj_ext.layer import TemporalReversible


def test_buffers_move_as_on_plain_autograd(seed):
    cell, x = conv_cell(), conv_input(5)
    oracle = twin(cell)
    gradients(cell, x, seed)
    gradients(oracle, x, seed)
    buffers, wanted = dict(cell.named_buffers()), dict(oracle.named_buffers())
    assert buffers.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(buffers[name], value), name
    assert all(buffers[f"levels.{i}.norm.num_batches_tracked"] == 5 for i in range(3))


class Counting(LinearLevel):
    """Counts its calls in a buffer that is replaced, and in one that is changed in place."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("replaced", torch.tensor(0))
        self.register_buffer("in_place", torch.tensor(0))

    def forward(self, below, above):
        self.replaced = self.replaced + 1
        self.in_place += 1
        return super().forward(below, above)


def test_any_buffer_is_left_alone_by_the_backward_pass():
    level = Counting(6, 8)
    cell = TemporalReversible([level], [0.5])
    y = cell(torch.randn(4, 3, 6))
    replaced, in_place = level.replaced, level.in_place
    y.sum().backward()
    assert level.replaced is replaced
    assert level.in_place is in_place
    assert (int(replaced), int(in_place)) == (4, 4)


def test_batch_norm_that_another_graph_uses_stays_usable():
    """The running statistics that a pending graph saved are not written to while levels undo."""
    cell, x = conv_cell(), conv_input(3)
    cell(x).sum().backward()
    cell.eval()
    norm = cell.levels[0].norm
    z = torch.randn(2, 8, 4, 4, requires_grad=True)
    pending = norm(z).sum()
    cell.reset()
    cell(x).sum().backward()
    pending.backward()
    assert z.grad is not None


def test_parameters_and_the_generator_are_put_back(seed):
    cell = conv_cell()
    before = {name: id(p) for name, p in cell.named_parameters()}
    y = cell(conv_input(3))
    state = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: id(p) for name, p in cell.named_parameters()} == before


def test_everything_is_put_back_when_a_level_fails_while_it_is_undone():
    class Failing(LinearLevel):
        def forward(self, below, above):
            if torch.is_grad_enabled():
                raise ZeroDivisionError
            return super().forward(below, above)

    level = Failing(6, 8, dropout=0.5)
    cell = TemporalReversible([level], [0.5])
    weight, y = level.down.weight, cell(torch.randn(4, 3, 6))
    state = torch.get_rng_state()
    try:
        y.sum().backward()
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the level did not fail")
    assert level.down.weight is weight
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_draws_what_it_draws_on_plain_autograd(seed):
    """The same masks twice within a pass, and the same numbers left for whoever comes next."""
    following = []
    for cell in (base := TemporalReversible(linear_levels(dropout=0.5), [0.5] * 3), twin(base)):
        y, grads = gradients(cell, torch.arange(72.0).view(4, 3, 6) / 72, seed)
        following.append((y, grads["input"], torch.rand(1)))
    for found, wanted in zip(*following, strict=True):
        torch.testing.assert_close(found, wanted)


def test_every_step_draws_masks_of_its_own(seed):
    masks = []

    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, below, above):
            masks.append(torch.rand(5))
            return below * self.scale + masks[-1]

    cell = TemporalReversible([Mask(), Mask()], [0.5, 0.5])
    y = cell(torch.randn(4, 3, 5))
    after = torch.rand(5)
    forward = list(masks)
    y.sum().backward()
    assert len(forward) == 8
    distinct = {tuple(mask.tolist()) for mask in (*forward, after)}
    assert len(distinct) == 9
    # Undone from the last step to the first and from the top level to the bottom.
    for found, wanted in zip(masks[8:], reversed(forward), strict=True):
        assert torch.equal(found, wanted)


def test_masks_of_many_steps_are_distinct(seed):
    """The seeds of the steps come from a range in which two hardly ever meet."""
    masks = []

    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, below, above):
            masks.append(tuple(torch.rand(3).tolist()))
            return below * self.scale

    TemporalReversible([Mask()], [0.5])(torch.randn(300, 1, 2))
    assert len(set(masks)) == 300


def test_levels_that_draw_nothing_leave_the_generator_alone():
    cell = conv_cell()
    cell.eval()
    state = torch.get_rng_state()
    cell(torch.ones(3, 2, 3, 8, 8)).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_level_shared_with_another_level(seed):
    """One module at two levels: its gradient is the sum, its buffers count both."""
    shared = Counting(7, 7, 7)
    cell = TemporalReversible([shared, shared], [0.5, 0.25])
    oracle = twin(cell)
    x = torch.randn(5, 3, 7)
    _, found = gradients(cell, x, seed)
    _, wanted = gradients(oracle, x, seed)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert int(shared.in_place) == 10


def test_memories_of_host_modules_inside_a_level_keep_no_graph():
    class Recording(host.base.MemoryModule):
        """Remembers its last input, as a host node with ``store_v_seq`` does."""

        def __init__(self):
            super().__init__()
            self.register_memory("last", 0.0)

        def forward(self, x):
            self.last = x * 1
            return x

    level = nn.Sequential()
    level.linear, level.recording = nn.Linear(6, 8), Recording()
    level.forward = lambda below, above: level.recording(level.linear(below))
    cell = TemporalReversible([level], [0.5])
    y = cell(torch.randn(4, 3, 6))
    last = level.recording.last
    y.sum().backward()
    assert level.recording.last is last
    assert not last.requires_grad
