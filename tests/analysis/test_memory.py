"""activation_memory against what is known, to the byte, about PyTorch's own operators."""

import gc
import os
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sj_ext.analysis import (
    ActivationMemory,
    activation_memory,
    memory,
    plot_activation_memory,
)


def count(fn, **kwargs):
    return activation_memory(fn, **kwargs)[1]


# ---- what is held after forward ------------------------------------------------------------------


def test_result_is_handed_on_and_counts():
    result, memory = activation_memory(lambda: torch.zeros(1000))
    assert torch.equal(result, torch.zeros(1000))
    assert memory == ActivationMemory(saved=4000, peak=4000)


@pytest.mark.parametrize(
    ("name", "function", "saved_elements"),
    [
        # what backward needs is the input, which existed before, or the result
        ("square", torch.square, 1),
        ("exp", torch.exp, 1),
        # result, and a mask or intermediate that no Python name holds
        ("sin(exp)", lambda x: x.exp().sin(), 2),
        ("sigmoid(exp(sin))", lambda x: x.sin().exp().sigmoid(), 2),
        # add saves nothing: the intermediate is gone
        ("add of adds", lambda x: (x + x) + x, 1),
        # relu_ saves its result, which is where cos kept its own
        ("in place", lambda x: x.cos().relu_(), 1),
        ("view of a result", lambda x: x.exp().view(-1).t(), 1),
        ("twice the same", lambda x: (lambda y: (y, y.view(-1), y.detach()))(x.exp()), 1),
    ],
)
def test_saved_for_backward_of_known_operators(name, function, saved_elements):
    x = torch.randn(37, 11, requires_grad=True)
    assert count(lambda: function(x)).saved == saved_elements * 4 * x.numel()


def test_nothing_is_saved_without_grad():
    x = torch.randn(1000, requires_grad=True)
    with torch.no_grad():
        memory = count(lambda: x.sin().exp().cos())
    assert memory == ActivationMemory(saved=4000, peak=8000)


def test_linear_layers_hold_their_inputs_and_no_parameter(seed):
    net = nn.Sequential(nn.Linear(50, 70, bias=False), nn.ReLU(), nn.Linear(70, 3, bias=False))
    x = torch.randn(13, 50)
    # result [13, 3]; the second layer's input [13, 70], which is also what ReLU saved; the input
    # of ReLU is gone; x and the weights were there before
    memory = count(lambda: net(x))
    assert memory.saved == 4 * 13 * (3 + 70)
    assert memory.peak == 4 * 13 * (70 + 70)


def test_cross_entropy_holds_log_probabilities():
    logits, target = torch.randn(64, 100, requires_grad=True), torch.randint(100, (64,))
    # log-softmax, the loss, and the total weight that nll_loss hands to its backward
    assert count(lambda: F.cross_entropy(logits, target)).saved == 4 * (6400 + 1 + 1)


def test_tensors_saved_by_a_custom_function():
    class Packed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward((x > 0).to(torch.uint8)[: len(x) // 8].clone())
            ctx.attribute = x.to(torch.float64)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return grad

    x = torch.randn(800, requires_grad=True)
    result, memory = activation_memory(lambda: Packed.apply(x))
    # result, bits, attribute
    assert memory.saved == 4 * 800 + 100 + 8 * 800
    assert result.grad_fn is not None


@given(data=st.data())
def test_saved_agrees_with_saved_tensor_hooks_on_random_graphs(data):
    """The oracle: what autograd says that it packs, and the result, by storage."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    functions = data.draw(
        st.lists(
            st.sampled_from(
                [
                    torch.sin,
                    torch.exp,
                    torch.relu,
                    torch.square,
                    lambda y: y.flip(0),
                    lambda y: y.softmax(-1),
                    lambda y: y + y,
                    lambda y: y * y.sigmoid(),
                    lambda y: y.view(-1).view_as(y),
                ]
            ),
            min_size=1,
            max_size=6,
        )
    )
    x = torch.rand(shape, requires_grad=True)

    def forward():
        y = x
        for function in functions:
            y = function(y)
        return y

    packed = []

    def pack(tensor):
        # saved results are packed as a detached alias: hold on to the storage
        packed.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    storages = {storage.data_ptr(): storage.nbytes() for storage in packed}
    storages[result.untyped_storage().data_ptr()] = result.untyped_storage().nbytes()
    storages.pop(x.untyped_storage().data_ptr(), None)

    memory = count(forward)
    assert memory.saved == sum(storages.values())
    assert memory.peak >= memory.saved


# ---- the peak, and backward ----------------------------------------------------------------------


def test_peak_of_a_chain_without_grad_is_two_buffers():
    x = torch.randn(1000)

    def chain():
        y = x
        for _ in range(10):
            y = y.sin()
        return y

    assert count(chain) == ActivationMemory(saved=4000, peak=8000)


def test_backward_within_the_function_is_seen():
    x = torch.randn(1000, requires_grad=True)
    memory = count(lambda: x.exp().sum().backward())
    # exp's result, the sum, the one that backward starts with, and the gradient, which stays
    assert memory == ActivationMemory(saved=4000, peak=4000 + 4 + 4 + 4000)

    x.grad = torch.zeros_like(x)  # now backward adds to a tensor that was there before
    assert count(lambda: x.exp().sum().backward()).saved == 0


def test_a_graph_from_before_costs_only_what_backward_makes():
    x = torch.randn(1000, requires_grad=True)
    loss = x.exp().sum()
    # the gradient, and the one that backward starts with; that the saved exp(x) goes is no gain
    assert count(lambda: loss.backward()) == ActivationMemory(saved=4000, peak=4004)


def test_checkpointing_saves_and_pays_at_the_peak_of_backward():
    net = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)])
    x = torch.randn(32, 64, requires_grad=True)

    def forward(halves):
        y = x
        for half in halves:
            y = checkpoint(half, y, use_reentrant=False, preserve_rng_state=False)
        return y

    plain = count(lambda: net(x))
    cheap = count(lambda: forward([net[:4], net[4:]]))
    assert plain.saved == 8 * 4 * 32 * 64
    assert cheap.saved == 2 * 4 * 32 * 64


def test_scratch_inside_an_operator_counts_at_the_peak():
    # median partitions a copy that no Python name ever holds
    x = torch.randn(1000)
    memory = count(lambda: torch.median(x))
    assert memory.saved == 4
    assert memory.peak >= 4000


# ---- what does not count -------------------------------------------------------------------------


def test_tensors_from_before_and_their_views_do_not_count():
    x = torch.randn(100, 100)
    memory = count(lambda: (x, x.t(), x[3], x.detach(), x.view(-1), x.add_(1.0)))
    assert memory.saved == 0


def test_release_of_tensors_from_before_is_no_gain():
    held = [torch.randn(5000)]
    memory = count(lambda: (held.clear(), torch.zeros(10))[1])
    assert memory == ActivationMemory(saved=40, peak=40)


def test_release_at_an_address_known_from_an_earlier_count_is_no_gain():
    # A block that a first count saw, released between the counts and used again by a tensor from
    # before the second: its release must not be taken for that of the first.
    for _ in range(6):
        first, _ = activation_memory(lambda: [torch.zeros(777) for _ in range(5)])
        del first
        held = [torch.zeros(777) for _ in range(5)]
        kept, memory = activation_memory(lambda held=held: (held.clear(), torch.zeros(3))[1])
        assert memory == ActivationMemory(saved=12, peak=12)
        del kept


def test_cycles_that_nothing_reaches_are_collected():
    def leak():
        knot = [torch.zeros(1000)]
        knot.append(knot)

    assert count(leak) == ActivationMemory(saved=0, peak=4000)


def test_state_left_behind_counts():
    net = nn.Linear(3, 3)

    def leave():
        net.state = torch.zeros(1000)

    assert count(leave).saved == 4000


def test_resize_is_a_new_block_and_a_release():
    def resize():
        y = torch.zeros(1000)
        return y.resize_(3000)

    assert count(resize) == ActivationMemory(saved=12000, peak=16000)


def test_freeing_a_storage_by_resize_counts():
    def free():
        y = torch.zeros(1000)
        y.untyped_storage().resize_(0)
        return y

    assert count(free) == ActivationMemory(saved=0, peak=4000)


def test_counts_repeat_and_do_not_depend_on_garbage():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.randn(2, 3, 9, 9)
    net(x)
    counts = set()
    for _ in range(5):
        knot = [torch.zeros(1234)]
        knot.append(knot)
        del knot
        counts.add(count(lambda: net(x)))
    gc.collect()
    assert len(counts) == 1


# ---- errors --------------------------------------------------------------------------------------


def test_an_error_passes_through_and_counting_goes_on():
    def fail():
        torch.zeros(10)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        activation_memory(fail)
    assert count(lambda: torch.zeros(10)).saved == 40


def test_nesting_raises_and_leaves_the_outer_count_alone():
    def outer():
        with pytest.raises(RuntimeError, match="while a profiler"):
            activation_memory(lambda: torch.zeros(3))
        return torch.zeros(10)

    assert count(outer).saved == 40


def test_not_callable():
    with pytest.raises(TypeError, match=r"fn must be a function.*got a tensor"):
        activation_memory(torch.zeros(3))


def test_device_filter():
    assert count(lambda: torch.zeros(10), device="cpu").saved == 40
    assert count(lambda: torch.zeros(10), device="cuda") == ActivationMemory(0, 0)


def test_counting_on_another_thread_than_the_first():
    out = []
    thread = threading.Thread(target=lambda: out.append(count(lambda: torch.zeros(25))))
    thread.start()
    thread.join()
    assert out == [ActivationMemory(100, 100)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_counts_blocks_on_every_thread():
    x = torch.randn(256, 256, device="cuda", requires_grad=True)
    step = 4 * 256 * 256
    assert count(lambda: x.sin().exp()).saved == 2 * step
    assert count(lambda: x.exp().sum().backward()).saved == step
    assert count(lambda: x.detach() @ x.detach()) == ActivationMemory(step, step)
    assert count(lambda: torch.zeros(1, device="cuda"), device="cpu").saved == 0
    assert count(lambda: torch.zeros(1, device="cuda"), device="cuda").saved == 512


# ---- the plot ------------------------------------------------------------------------------------


def test_plot_shows_every_number():
    measured = {"a": ActivationMemory(2**20, 2**21), "b": ActivationMemory(2**22, 2**23)}
    axes = plot_activation_memory(measured)
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [[1.0, 4.0], [2.0, 8.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert plot_activation_memory(measured, axes) is axes


def test_plot_of_nothing():
    with pytest.raises(ValueError, match="measured is empty"):
        plot_activation_memory({})


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeError, match="pip install"):
        plot_activation_memory({"a": ActivationMemory(1, 2)})


@pytest.mark.parametrize("before", [None, "3"])
def test_the_profilers_log_level_is_that_of_the_user_but_while_it_starts(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("KINETO_LOG_LEVEL", before)
    seen = []
    start = memory.profile.__enter__
    monkeypatch.setattr(memory.profile, "__enter__", lambda p: (seen.append(level()), start(p))[1])

    def level():
        return os.environ.get("KINETO_LOG_LEVEL")

    assert activation_memory(level)[0] == before
    assert seen == [before or "99"] and level() == before
