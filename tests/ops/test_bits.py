"""pack_bits and unpack_bits: one bit per element, exactly the mask back."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext.ops import bits
from sj_ext.ops.bits import keep_where_bits, pack_bits, unpack_bits

shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


@given(shape=shapes, seed=st.integers(0, 2**31 - 1))
def test_round_trip_and_size(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((mask.numel() + 7) // 8,)
    restored = unpack_bits(packed, shape)
    assert restored.dtype == torch.bool and restored.is_contiguous()
    assert torch.equal(restored, mask)


@given(numel=st.integers(0, 200), seed=st.integers(0, 2**31 - 1))
def test_bit_order_is_that_of_numpy_packbits_little(numel, seed):
    mask = torch.rand(numel, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = numpy.packbits(mask.numpy(), bitorder="little")
    assert numpy.array_equal(pack_bits(mask).numpy(), expected)


@pytest.mark.parametrize("numel", [0, 1, 8, 64, 1003])
def test_the_form_for_compilers_agrees_with_the_eager_one(monkeypatch, numel):
    mask = torch.rand(numel) < 0.5
    packed = pack_bits(mask)
    monkeypatch.setattr(bits, "_eager", lambda tensor: False)
    assert torch.equal(pack_bits(mask), packed)
    assert torch.equal(unpack_bits(packed, (numel,)), mask)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_keep_where_bits_multiplies_by_the_mask(monkeypatch, dtype, eager):
    values, mask = torch.randn(5, 7, dtype=dtype), torch.rand(5, 7) < 0.5
    packed = pack_bits(mask)
    if not eager:
        monkeypatch.setattr(bits, "_eager", lambda tensor: False)
    kept = keep_where_bits(packed, values)
    assert kept.dtype == dtype
    assert torch.equal(kept, values.masked_fill(~mask, 0))


def test_compiles_into_one_graph():
    def there_and_back(x):
        packed = pack_bits(x > 0)
        return packed, unpack_bits(packed, x.shape)

    x = torch.randn(3, 7, 5)
    packed, mask = torch.compile(there_and_back, fullgraph=True)(x)
    assert torch.equal(mask, x > 0)
    assert torch.equal(packed, pack_bits(x > 0))


@pytest.mark.parametrize("offset", range(9))
def test_views_and_layouts(offset):
    mask = torch.rand(100) < 0.5
    assert torch.equal(unpack_bits(pack_bits(mask[offset:]), (100 - offset,)), mask[offset:])
    image = (torch.rand(2, 3, 5, 4) < 0.5).to(memory_format=torch.channels_last)
    assert torch.equal(unpack_bits(pack_bits(image), image.shape), image)
    assert torch.equal(unpack_bits(pack_bits(image[..., ::2]), (2, 3, 5, 2)), image[..., ::2])


def test_no_temporary_is_larger_than_the_mask():
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    mask = torch.rand(8000) < 0.5
    with Sizes():
        unpack_bits(pack_bits(mask), mask.shape)
    assert largest == mask.untyped_storage().nbytes()


def test_wrong_input_is_named():
    with pytest.raises(TypeError, match=r"mask must be a torch\.bool tensor, got torch\.float32"):
        pack_bits(torch.zeros(8))
    with pytest.raises(TypeError, match=r"packed must be a torch\.uint8 tensor, got torch\.int64"):
        unpack_bits(torch.zeros(1, dtype=torch.int64), (8,))
    for wrong in (0, 1, 3):
        with pytest.raises(ValueError, match=r"packed must have shape \[2\].*\[3, 3\]"):
            unpack_bits(torch.zeros(wrong, dtype=torch.uint8), (3, 3))
    with pytest.raises(ValueError, match=r"packed must have shape \[2\]"):
        unpack_bits(torch.zeros(1, 2, dtype=torch.uint8), (16,))


near_words = st.builds(
    lambda words, by: max(0, words * 8 + by), st.integers(0, 40), st.integers(-1, 1)
)


@given(
    numel=near_words,
    offset=st.integers(0, 9),
    step=st.integers(1, 3),
    eager=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_length_offset_and_stride(numel, offset, step, eager, seed):
    """The word-wise form reads eight elements as one: addresses off its grid, and odd ends."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(offset + numel * step, generator=generator) < 0.5)[offset::step][:numel]
    with pytest.MonkeyPatch.context() as patch:
        if not eager:
            patch.setattr(bits, "_eager", lambda tensor: False)
        packed = pack_bits(mask)
        assert numpy.array_equal(packed.numpy(), numpy.packbits(mask.numpy(), bitorder="little"))
        assert torch.equal(unpack_bits(packed, (numel,)), mask)
        shifted = torch.cat([packed.new_zeros(offset), packed])[offset:]
        assert torch.equal(unpack_bits(shifted, (numel,)), mask)
        values = torch.randn(numel, generator=generator)
        assert torch.equal(keep_where_bits(packed, values), values.masked_fill(~mask, 0))


@given(data=st.binary(max_size=40), spare=st.integers(0, 7))
def test_any_bytes_are_some_mask(data, spare):
    """Whatever was saved is read as a mask; bits beyond its end are not looked at."""
    packed = torch.tensor(list(data), dtype=torch.uint8)
    numel = max(0, 8 * len(data) - spare) if data else 0
    mask = unpack_bits(packed, (numel,))
    wanted = numpy.unpackbits(packed.numpy(), bitorder="little")[:numel].astype(bool)
    assert numpy.array_equal(mask.numpy(), wanted)
    again = pack_bits(mask)
    assert torch.equal(unpack_bits(again, (numel,)), mask)


@given(
    numel=st.builds(lambda power, by: 2**power + by, st.integers(4, 40), st.integers(-8, 8)),
    wrong=st.sampled_from([-1, 1]),
)
def test_sizes_beyond_32_bits_are_counted_right(numel, wrong):
    """On meta tensors, of which nothing is allocated."""
    size = (numel + 7) // 8
    packed = torch.empty(size, dtype=torch.uint8, device="meta")
    mask = unpack_bits(packed, (numel,))
    assert mask.shape == (numel,)
    assert pack_bits(mask).shape == (size,)
    with pytest.raises(ValueError, match=f"{size}"):
        unpack_bits(torch.empty(size + wrong, dtype=torch.uint8, device="meta"), (numel,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none_outside_the_mask(bad):
    """As a multiplication by 0 has it, and so as autograd of the window has it."""
    values = torch.tensor([bad, 1.0, bad, 2.0])
    mask = torch.tensor([False, False, True, True])
    kept = keep_where_bits(pack_bits(mask), values)
    torch.testing.assert_close(kept, values * mask, equal_nan=True)
    assert kept[0].isnan()
