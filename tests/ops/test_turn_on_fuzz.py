"""The turn-on kernel under strange numbers, strides and sizes; nothing of the size is allocated.

The host runs ``kernel.cu`` as in ``test_turn_on_kernel.py``; sizes near the limits of 32 bits and
of a grid go through the launch arithmetic on meta tensors.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from sj_ext.ops.turn_on import naive, op
from sj_ext.ops.turn_on.launch import COLUMNS, DTYPES, SEGMENT, Variant
from sj_ext.surrogate import Rect

STRANGE = [math.nan, math.inf, -math.inf, 1e-41, 3e38]
#: CUDA's limits of the grid's first axis and of a block
MOST_BLOCKS, MOST_THREADS = 2**31 - 1, 1024


@pytest.fixture
def on_host(monkeypatch, host_launch):
    monkeypatch.setattr(op, "launch", host_launch)


def strew(x, values=STRANGE):
    places = torch.randperm(x.numel())[: max(1, x.numel() // 6)]
    x.view(-1)[places] = torch.tensor(values * len(places))[: len(places)].to(x.dtype)
    return x


@pytest.mark.parametrize("columns", [(3, 7), (4, 16)], ids=str)
@pytest.mark.parametrize("strange", ["input", "gradient"])
def test_strange_numbers_travel_as_in_the_naive_twin(on_host, columns, strange):
    x_seq, v, decay = torch.randn(9, *columns), torch.randn(columns), torch.tensor([0.7])
    weights = torch.randn(9, *columns)
    strew(x_seq if strange == "input" else weights)
    constants = 1, 0.5, 1.0, False, ""
    spike, v_last, bits, _ = op._forward_cuda(x_seq, v, decay, *constants, True, False)
    found = op._backward_cuda(weights, None, None, bits, x_seq, v, decay, *constants, True, True)
    inputs = [t.clone().requires_grad_() for t in (x_seq, v, decay)]
    wanted, v_seq = naive.turn_on(*inputs, 0.5, Rect())
    assert torch.equal(spike, wanted)
    torch.testing.assert_close(v_last, v_seq[-1], equal_nan=True, rtol=0, atol=0)
    expected = torch.autograd.grad(wanted, inputs, weights)
    for got, want in zip(found, expected, strict=True):
        assert got[want.isnan()].isnan().all()
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES[:2]),
    order=st.permutations(range(4)),
    sizes=st.tuples(st.integers(1, 9), *[st.integers(1, 8)] * 3),
    offset=st.integers(0, 3),
    step=st.integers(1, 3),
    per_channel=st.booleans(),
    draw_seed=st.integers(0, 2**31 - 1),
)
def test_any_strides_and_offsets(
    on_host, dtype, order, sizes, offset, step, per_channel, draw_seed
):
    torch.manual_seed(draw_seed)
    permuted = [sizes[i] for i in order]
    whole = torch.randn(offset + step * math.prod(permuted)).to(dtype)
    x_seq = whole[offset::step].view(permuted).permute([order.index(i) for i in range(4)])
    assert list(x_seq.shape) == list(sizes)
    decay = torch.rand(sizes[2] if per_channel else 1) + 0.1
    inner = sizes[3] if per_channel and sizes[2] > 1 else 1
    constants = inner, 0.5, 1.0, False, ""
    weights = torch.randn(step, *sizes).to(dtype)[-1]
    results = [
        (
            *op._forward_cuda(x, None, decay, *constants, True, True),
            *op._backward_cuda(
                weights,
                None,
                None,
                op._forward_cuda(x, None, decay, *constants, True, True)[2],
                x,
                None,
                decay,
                *constants,
                True,
                False,
            ),
        )
        for x in (x_seq, x_seq.contiguous())
    ]
    for number, (one, other) in enumerate(zip(*results, strict=True)):
        if number != 2:  # bits beyond the neurons are what the memory held
            assert torch.equal(one, other)
    a = decay.view(-1, 1) if decay.numel() > 1 else decay
    wanted, _ = naive.turn_on(x_seq, torch.zeros(sizes[1:]), a, 0.5, Rect())
    assert torch.equal(results[0][0], wanted)


near_limits = st.one_of(
    st.integers(1, 5000),
    st.builds(
        lambda power, by: max(1, 2**power + by),
        st.integers(3, 31),
        st.integers(-2100, 2100),
    ),
)


@settings(max_examples=200)
@given(columns=near_limits, dtype=st.sampled_from(DTYPES))
@example(columns=2**31 - 1, dtype=torch.float32)
@example(columns=2**31, dtype=torch.float16)
@example(columns=2**19, dtype=torch.bfloat16)
def test_a_grid_covers_every_neuron_once_and_fits_the_card(columns, dtype):
    if columns >= 2**31:
        with pytest.raises(ValueError, match=f"fewer than 2\\*\\*31 elements.*{columns}"):
            Variant.of(dtype, columns)
        return
    variant = Variant.of(dtype, columns)
    blocks = variant.blocks(columns)
    per_block = COLUMNS * variant.block
    assert variant.block & (variant.block - 1) == 0 and variant.block <= MOST_THREADS
    assert 1 <= blocks <= MOST_BLOCKS
    assert blocks * per_block >= columns > (blocks - 1) * per_block
    assert blocks * per_block < 2**32  # columns are counted in 32 unsigned bits by read_decay
    # a row of bits holds a byte per thread of the grid
    assert op._bits_stride(columns) >= blocks * variant.block
    # with aligned rows a group of neighbours is inside or outside as a whole
    group = 16 // dtype.itemsize
    assert not variant.aligned or columns % group == 0


@pytest.fixture
def launches(monkeypatch):
    """What would be launched, in place of launching it."""
    seen = []

    def record(variant, name, blocks, device, *arguments):
        for value in arguments:
            if isinstance(value, int):
                assert -(2**63) <= value < 2**63
        seen.append((variant, name, blocks, arguments))

    monkeypatch.setattr(op, "launch", record)
    return seen


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    steps=st.sampled_from([1, 7, 8, 9, 64, 1000]),
    batch=near_limits,
    channels=st.sampled_from([1, 3, 64]),
    inner=st.sampled_from([1, 49, 1024]),
    per_channel=st.booleans(),
    code=st.sampled_from(["", "window = 1.0f;"]),
    dtype=st.sampled_from(DTYPES),
)
def test_launches_of_any_size(launches, steps, batch, channels, inner, per_channel, code, dtype):
    """Up to and beyond 2**31 elements over the steps; sizes of outputs and of scratch space."""
    columns = batch * channels * inner
    assume(columns < 2**33)
    meta = {"device": "meta"}
    x_seq = torch.empty(steps, batch, channels, inner, dtype=dtype, **meta)
    decay = torch.empty(channels if per_channel else 1, **meta)
    constants = inner if per_channel and channels > 1 else 1, 0.5, 1.0, False, code
    launches.clear()
    if columns >= 2**31:
        with pytest.raises(ValueError, match="fewer than"):
            op._forward_cuda(x_seq, None, decay, *constants, True, False)
        assert not launches
        return
    spike, v_last, bits, _ = op._forward_cuda(x_seq, None, decay, *constants, True, False)
    found = op._backward_cuda(spike, v_last, None, bits, x_seq, None, decay, *constants, True, True)
    (forward, _, blocks, given_), (backward, _, blocks_back, given_back) = launches
    assert forward == backward and blocks == blocks_back
    for arguments in (given_, given_back):
        assert {steps, columns} <= {value for value in arguments if isinstance(value, int)}
    assert spike.shape == found[0].shape == x_seq.shape and v_last.shape == x_seq.shape[1:]
    assert found[1].shape == v_last.shape and found[2].shape == decay.shape
    if code:
        assert bits.numel() == 0
        assert given_back[-1].shape == ((steps - 1) // SEGMENT, columns)
    else:
        assert bits.shape[0] == steps and bits.shape[1] >= blocks * forward.block
        assert given_back[-1] is None
    terms = given_back[-2]
    assert terms.numel() == (blocks if decay.numel() == 1 else columns)
    # the fake implementations, which torch.compile and torch.export go by, promise the same
    promised = torch.ops.sj_ext.turn_on_forward_r2(x_seq, None, decay, *constants, True, False)
    assert [t.shape for t in promised[:3]] == [spike.shape, v_last.shape, bits.shape]
