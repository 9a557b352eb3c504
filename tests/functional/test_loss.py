"""The losses against their equations, written out in float64, and the memory that they take."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sj_ext.analysis import activation_memory
from sj_ext.functional import (
    lts_cross_entropy,
    sdt_cross_entropy,
    tet_cross_entropy,
    tet_s_cross_entropy,
)

LOSSES = {
    "sdt": sdt_cross_entropy,
    "tet": tet_cross_entropy,
    "tet, mse": lambda y, q: tet_cross_entropy(y, q, means=0.7, lamb=0.05),
    "tet_s": tet_s_cross_entropy,
    "tet_s, 0.2": lambda y, q: tet_s_cross_entropy(y, q, label_smoothing=0.2),
    "lts": lts_cross_entropy,
}
TET_FAMILY = ["tet", "tet, mse", "tet_s", "tet_s, 0.2"]


def make(t, n, c, probabilities, dtype=torch.float32, scale=2.0):
    y_seq = (torch.randn(t, n, c, dtype=dtype) * scale).requires_grad_()
    if probabilities:
        target = torch.rand(n, c, dtype=torch.float64).softmax(-1).to(dtype)
    else:
        target = torch.randint(c, (n,))
    return y_seq, target


# ---- the oracle: the equations of the specification, sample by sample in float64 -----------------


def ce(y, q):
    top = y.max()
    log_z = top + (y - top).exp().sum().log()
    return sum(q[c] * (log_z - y[c]) for c in range(len(y)))


def oracle(name, y_seq, target):
    y_seq = y_seq.double()
    t, n, c = y_seq.shape
    q = F.one_hot(target, c).double() if target.dim() == 1 else target.double()

    def over_batch(of_sample):
        return sum(of_sample(i) for i in range(n)) / n

    def mean_ce(q):
        return over_batch(lambda i: sum(ce(y_seq[s, i], q[i]) for s in range(t)) / t)

    if name == "sdt":
        return over_batch(lambda i: ce(sum(y_seq[s, i] for s in range(t)) / t, q[i]))
    if name == "lts":
        return over_batch(lambda i: ce(y_seq[t - 1, i], q[i]))
    if name == "tet":
        return mean_ce(q)
    if name == "tet, mse":
        return 0.95 * mean_ce(q) + 0.05 * ((y_seq - 0.7) ** 2).sum() / (t * n * c)
    eps = 0.2 if "0.2" in name else 0.01
    return mean_ce((1 - eps) * q + eps / c)


@given(
    name=st.sampled_from(sorted(LOSSES)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    probabilities=st.booleans(),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_value_and_gradient_agree_with_the_equations(name, sizes, probabilities, scale):
    y_seq, target = make(*sizes, probabilities, torch.float64, scale)
    loss = LOSSES[name](y_seq, target)
    expected = oracle(name, y_seq, target)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, y_seq)[0] for value in (loss, expected)),
        rtol=1e-9,
        atol=1e-11,
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_float32_agrees_with_the_equations(name, probabilities):
    y_seq, target = make(4, 8, 10, probabilities)
    loss = LOSSES[name](y_seq, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), oracle(name, y_seq, target), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_probabilities_are_class_indices(name):
    y_seq, target = make(3, 6, 7, False, torch.float64)
    one_hot = F.one_hot(target, 7).double()
    torch.testing.assert_close(LOSSES[name](y_seq, target), LOSSES[name](y_seq, one_hot))


@pytest.mark.parametrize("name", LOSSES)
def test_mixup_of_probabilities_is_the_mixture_of_losses(name):
    y_seq, a = make(3, 6, 7, True, torch.float64)
    b = a.flip(0)
    mixed = LOSSES[name](y_seq, 0.3 * a + 0.7 * b)
    parts = 0.3 * LOSSES[name](y_seq, a) + 0.7 * LOSSES[name](y_seq, b)
    torch.testing.assert_close(mixed, parts)


def test_one_step_makes_sdt_tet_and_lts_the_same():
    y_seq, target = make(1, 6, 7, False, torch.float64)
    expected = F.cross_entropy(y_seq[0], target)
    for name in ("sdt", "tet", "lts"):
        torch.testing.assert_close(LOSSES[name](y_seq, target), expected)


def test_tet_is_cross_entropy_of_the_flattened_steps():
    y_seq, target = make(5, 6, 7, False)
    expected = F.cross_entropy(y_seq.flatten(0, 1), target.repeat(5))
    torch.testing.assert_close(tet_cross_entropy(y_seq, target), expected)
    expected = F.cross_entropy(y_seq.flatten(0, 1), target.repeat(5), label_smoothing=0.1)
    torch.testing.assert_close(tet_s_cross_entropy(y_seq, target, label_smoothing=0.1), expected)


def test_lts_leaves_the_earlier_steps_alone():
    y_seq, target = make(4, 6, 7, False)
    lts_cross_entropy(y_seq, target).backward()
    assert y_seq.grad[:-1].abs().max() == 0
    assert (y_seq.grad[-1].abs().sum(-1) > 0).all()


def test_extreme_logits_stay_finite():
    y_seq = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    for function in (sdt_cross_entropy, tet_cross_entropy, lts_cross_entropy):
        assert function(y_seq, torch.tensor([0])) == 0
        assert function(y_seq, torch.tensor([1])) == 2e4
    tet_cross_entropy(y_seq, torch.tensor([1])).backward()
    assert torch.equal(y_seq.grad, torch.tensor([[[1.0, -1.0, 0.0]]]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_any_integer_dtype_holds_class_indices(name, dtype):
    y_seq, target = make(3, 6, 7, False)
    assert LOSSES[name](y_seq, target.to(dtype)) == LOSSES[name](y_seq, target)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_autocast_computes_in_float32(name, probabilities):
    y_seq, target = make(3, 6, 7, probabilities)
    low = y_seq.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](low, target)
    torch.testing.assert_close(loss.float(), LOSSES[name](low.float(), target), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_bfloat16_probabilities_of_many_classes_are_accepted(name, probabilities):
    y_seq, target = make(2, 3, 1000, probabilities, torch.bfloat16)
    assert torch.isfinite(LOSSES[name](y_seq, target))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_compiles_without_a_graph_break(name, probabilities):
    y_seq, target = make(3, 6, 7, probabilities)
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y_seq, target), LOSSES[name](y_seq, target))
    with pytest.raises(RuntimeError, match="target must hold"):
        compiled(y_seq, target - 1 if probabilities else target + 7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_second_derivatives(name, probabilities):
    y_seq, target = make(2, 2, 3, probabilities, torch.float64)
    torch.autograd.gradcheck(LOSSES[name], (y_seq, target))
    torch.autograd.gradgradcheck(LOSSES[name], (y_seq, target))


def test_learned_targets_get_their_gradient():
    """A teacher's probabilities may be part of the graph."""
    y_seq, target = make(3, 6, 7, True, torch.float64)
    target.requires_grad_()
    tet_cross_entropy(y_seq, target).backward()
    torch.testing.assert_close(target.grad, -y_seq.detach().log_softmax(-1).mean(0) / 6)


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("name", TET_FAMILY)
def test_tet_family_allocates_what_cross_entropy_does(name, probabilities):
    y_seq, target = make(16, 256, 1000, probabilities)
    flat_target = target.repeat(16, 1) if probabilities else target.repeat(16)

    def peer():
        return F.cross_entropy(y_seq.flatten(0, 1), flat_target)

    def ours():
        return LOSSES[name](y_seq, target)

    forward, peer_forward = activation_memory(ours)[1], activation_memory(peer)[1]
    assert forward.saved <= 1.2 * peer_forward.saved
    assert forward.peak <= 1.2 * peer_forward.peak

    def step(loss):
        y_seq.grad = None
        return activation_memory(lambda: loss().backward())[1].peak

    assert step(ours) <= 1.2 * step(peer)


@pytest.mark.parametrize("name", LOSSES)
def test_memory_for_the_target_does_not_grow_with_time(name):
    """C = 1: all that has a time axis is y_seq's own size, so a copy of the target would show."""
    n = 1000

    def saved(t):
        y_seq = torch.randn(t, n, 1, requires_grad=True)
        target = torch.zeros(n, dtype=torch.long)
        return activation_memory(lambda: LOSSES[name](y_seq, target))[1].saved

    # log-probabilities, 4 bytes for each step and sample; indices would be 8 more
    assert saved(9) - saved(8) <= 4 * n


# ---- bad input -----------------------------------------------------------------------------------


def expect(error, match, y_seq, target):
    for function in LOSSES.values():
        with pytest.raises(error, match=match):
            function(y_seq, target)


def test_y_seq_must_have_a_time_axis():
    target = torch.zeros(4, dtype=torch.long)
    expect(ValueError, r"y_seq .*\[T, N, C\].*got \[4, 5\].*time axis", torch.randn(4, 5), target)
    expect(ValueError, r"y_seq .*got \[4, 5\].*step_logits", torch.randn(4, 5), target)
    expect(ValueError, r"y_seq .*\[T, N, C\].*got \[4\]", torch.randn(4), target)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_empty_y_seq(shape):
    target = torch.zeros(shape[1], dtype=torch.long)
    expect(ValueError, r"y_seq .* at least, got", torch.randn(shape), target)


def test_wrong_types():
    target = torch.zeros(4, dtype=torch.long)
    expect(TypeError, "y_seq must be a tensor.*list", [[1.0]], target)
    expect(TypeError, "y_seq .*floating.*int64", torch.ones(3, 4, 5, dtype=torch.long), target)
    expect(TypeError, "target must be a tensor.*list", torch.randn(3, 4, 5), [0, 1, 2, 3])


@pytest.mark.parametrize("shape", [(), (3,), (5,), (4, 4), (4, 1), (4, 3, 5), (1, 4), (3, 4, 5, 1)])
def test_target_of_the_wrong_shape(shape):
    message = r"target .*\[4\] or \[4, 5\], or .* \[3, 4\] or \[3, 4, 5\], got \["
    expect(ValueError, message, torch.randn(3, 4, 5), torch.zeros(shape))
    expect(ValueError, message, torch.randn(3, 4, 5), torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_class_indices_of_the_wrong_dtype(dtype):
    expect(TypeError, "integer dtype, got", torch.randn(3, 4, 5), torch.zeros(4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_probabilities_of_the_wrong_dtype(dtype):
    target = F.one_hot(torch.arange(4), 5).to(dtype)
    expect(TypeError, "floating point dtype, got", torch.randn(3, 4, 5), target)


@pytest.mark.parametrize("index", [-1, 5, -100, 2**40])
def test_class_index_out_of_range(index):
    target = torch.tensor([0, 4, index, 1])
    message = rf"target .*0 to 4, got {index} for sample 2"
    expect(ValueError, message, torch.randn(3, 4, 5), target)


@pytest.mark.parametrize(
    "row", [[1.1, -0.1], [0.5, 0.4], [0.6, 0.6], [math.nan, 1.0], [math.inf, 0.0]]
)
def test_row_that_is_no_distribution(row):
    target = torch.tensor([[0.5, 0.5], row])
    expect(ValueError, "target .*probabilities.*for sample 1", torch.randn(3, 2, 2), target)


def test_target_on_another_device():
    y_seq = torch.randn(3, 4, 5, device="meta")
    expect(ValueError, "on the device of y_seq, meta, got cpu", y_seq, torch.zeros(4).long())


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_numbers_out_of_range(value):
    y_seq, target = make(2, 3, 4, False)
    with pytest.raises(ValueError, match="lamb must be .*between 0 and 1, got"):
        tet_cross_entropy(y_seq, target, lamb=value)
    with pytest.raises(ValueError, match="label_smoothing must be .*between 0 and 1, got"):
        tet_s_cross_entropy(y_seq, target, label_smoothing=value)
    if not math.isfinite(value):
        with pytest.raises(ValueError, match="means must be a finite number, got"):
            tet_cross_entropy(y_seq, target, means=value)


@pytest.mark.parametrize("value", ["0.1", None, True, torch.zeros(2)])
def test_numbers_of_the_wrong_type(value):
    y_seq, target = make(2, 3, 4, False)
    for name in ("means", "lamb"):
        with pytest.raises(TypeError, match=f"{name} must be a number.*, got"):
            tet_cross_entropy(y_seq, target, **{name: value})
    with pytest.raises(TypeError, match="label_smoothing must be a number.*, got"):
        tet_s_cross_entropy(y_seq, target, label_smoothing=value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_cuda_agrees_and_does_not_wait_for_the_device(name, probabilities):
    y_seq, target = make(4, 8, 10, probabilities)
    on_cuda = y_seq.detach().cuda(), target.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = LOSSES[name](*on_cuda)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), LOSSES[name](y_seq.detach(), target))
