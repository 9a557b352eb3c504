"""The selection agrees with sorting everything, for every kind of ties, dtype and block size."""

import sys

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext.pruning.selection import (
    Ranking,
    compiled,
    cut_mask_,
    flat,
    scale_between_,
    smallest_count,
    zero_below_,
)
from sj_ext.pruning.selection import ranking as ranking_module


def sorted_keys(tensors):
    keys = [
        (float(value), i, j)
        for i, tensor in enumerate(tensors)
        for j, value in enumerate(tensor.abs().double().tolist())
    ]
    return sorted(keys)


KINDS = {
    "normal": lambda t: t,
    "few values": lambda t: (3 * t).round() / 3,
    "all equal": lambda t: torch.full_like(t, -0.5),
    "all zero": torch.zeros_like,
    "mostly zero": lambda t: t * (torch.rand_like(t) > 0.7),
    "denormal": lambda t: t * 1e-40,
    "bfloat16": lambda t: t.bfloat16(),
    "float16": lambda t: t.half(),
    "float64": lambda t: t.double(),
}


@pytest.fixture(params=["one look", "small sample", "bad sample", "compiled"])
def sizes(request, monkeypatch):
    """Sizes at which the sample, the bracket and the blocks are all exercised by small tensors."""
    if request.param != "one look":
        monkeypatch.setattr("sj_ext.pruning.selection.ranking.SMALL", 0)
        monkeypatch.setattr("sj_ext.pruning.selection.blocks.BLOCK", 64)
        sample = 4 if request.param == "bad sample" else 60
        monkeypatch.setattr("sj_ext.pruning.selection.ranking.SAMPLE", sample)
    if request.param == "compiled":
        assert compiled.scanner() is not None  # numba belongs to what the tests install
        monkeypatch.setattr("sj_ext.pruning.selection.compiled.LARGE", 0)
        monkeypatch.setattr("sj_ext.pruning.selection.blocks.BLOCK", 150)  # chunks and a rest


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_every_answer_equals_that_of_sorting(kind, sizes):
    for _ in range(12):
        lengths = torch.randint(1, 300, (int(torch.randint(1, 5, ())),)).tolist()
        makers = list(KINDS.values())
        pick = [
            makers[int(torch.randint(len(makers), ()))] if kind == "mixed" else KINDS[kind]
            for _ in lengths
        ]
        tensors = [make(torch.randn(n)) for make, n in zip(pick, lengths, strict=True)]
        keys = sorted_keys(tensors)
        total = len(keys)
        first = int(torch.randint(0, total + 1, ()))
        last = min(total, first + int(torch.randint(0, 40, ())))
        ranking = Ranking(tensors, first, last)
        for count in {first, last, (first + last) // 2}:
            below = keys[:count]
            per_tensor = [sum(1 for _, i, _ in below if i == t) for t in range(len(tensors))]
            assert ranking.counts(count) == per_tensor
            scale = sum(v * v for v, _, _ in keys)
            want = [sum(v * v for v, i, _ in below if i == t) for t in range(len(tensors))]
            assert ranking.energy(count) == pytest.approx(sum(want), abs=1e-6 * scale + 1e-60)
            assert ranking.energies(count) == pytest.approx(want, abs=1e-6 * scale + 1e-60)
            if count:
                assert ranking.magnitude_at(count) == below[-1][0]
            keep = [torch.ones(len(t), dtype=torch.bool) for t in tensors]
            for _, i, j in below:
                keep[i][j] = False
            cut = ranking.cut(count)
            masks = [torch.empty_like(k) for k in keep]
            cut_mask_(masks, tensors, cut)
            assert all(torch.equal(m, k) for m, k in zip(masks, keep, strict=True))
            zeroed = [t.clone() for t in tensors]
            zero_below_(zeroed, cut)
            assert all(torch.equal(z, t * k) for z, t, k in zip(zeroed, tensors, keep, strict=True))


@pytest.mark.parametrize("kind", ["normal", "few values", "all equal", "mostly zero"])
def test_the_smallest_sufficient_count(kind, sizes):
    tensors = [KINDS[kind](torch.randn(n)) for n in (50, 3, 120)]
    price = torch.rand(3).double() + 0.1
    keys = sorted_keys(tensors)
    need = float(torch.rand(())) * sum(p * len(t) for p, t in zip(price, tensors, strict=True))
    spent, want = 0.0, 0
    while spent < need:
        spent += price[keys[want][1]]
        want += 1

    def enough(counts):
        return sum(p * c for p, c in zip(price, counts, strict=True)) >= need - 1e-9

    count, counts = smallest_count(tensors, enough)
    assert count == want
    assert counts == [sum(1 for _, i, _ in keys[:want] if i == t) for t in range(3)]


def test_weights_between_two_cuts_are_scaled_alone():
    tensors = [torch.randn(40), torch.randn(30).mul(3).round()]
    keys = sorted_keys(tensors)
    want = [t.clone() for t in tensors]
    for _, i, j in keys[20:45]:
        want[i][j] *= (0.5, 0.25)[i]
    ranking = Ranking(tensors, 20, 45)
    scale_between_(tensors, ranking.cut(20), ranking.cut(45), (0.5, 0.25))
    assert all(torch.equal(t, w) for t, w in zip(tensors, want, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_found_and_says_where(bad):
    tensors = [torch.randn(100), torch.randn(200_000), torch.randn(100)]
    tensors[1][77] = bad
    if bad != bad:
        with pytest.raises(ValueError, match="NaN") as caught:
            Ranking(tensors, 100_000, 100_001)
        assert caught.value.tensors == [1]


@pytest.mark.parametrize("from_size", [0, 1 << 30], ids=["compiled", "NumPy"])
def test_threads_do_not_change_the_result(from_size, monkeypatch):
    monkeypatch.setattr("sj_ext.pruning.selection.compiled.LARGE", from_size)
    tensors = [torch.randn(700_001), torch.randn(300_000)]
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            ranking = Ranking(tensors, 600_000, 610_000)
            results.append((ranking.energy(605_000), ranking.cut(605_000)))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_compiled_pass_counts_as_numpy_does(kind):
    block = torch.randn(int(torch.randint(1, 1000, ())), dtype=kind).numpy()
    low, high = sorted(float(v) for v in torch.rand(2).to(kind))
    low, high = block.dtype.type(low), block.dtype.type(high)
    scratch = [(numpy.empty(len(block), "int32"), numpy.empty(len(block), block.dtype))
               for _ in range(2)]  # fmt: skip
    size = abs(block)
    inside = numpy.flatnonzero((size > low) & (size <= high))
    # as it is compiled, and the same function read by Python
    for scan, (index, magnitude) in zip((compiled.scanner(), compiled.scan_block), scratch,
                                        strict=True):  # fmt: skip
        count, energy, taken = scan(block, low, high, index, magnitude)
        assert count == (size <= low).sum()
        squares = size[size <= low].astype("float64") ** 2
        assert energy == pytest.approx(squares.sum(), rel=1e-6, abs=1e-30)
        assert index[:taken].tolist() == inside.tolist()
        assert (magnitude[:taken] == size[inside]).all()


def test_without_numba_the_result_is_the_same(monkeypatch):
    """Counts and places to the bit; sums but for the order of their rounding."""
    tensors = [torch.randn(300_000), torch.randn(200_000)]
    monkeypatch.setattr("sj_ext.pruning.selection.compiled.LARGE", 0)
    with_numba = Ranking(tensors, 200_000, 210_000)
    monkeypatch.setitem(sys.modules, "numba", None)  # the import fails
    compiled.scanner.cache_clear()
    try:
        assert compiled.scanner() is None
        without = Ranking(tensors, 200_000, 210_000)
    finally:
        compiled.scanner.cache_clear()
    assert without.cut(205_000) == with_numba.cut(205_000)
    assert without.counts(205_000) == with_numba.counts(205_000)
    assert without.energy(205_000) == pytest.approx(with_numba.energy(205_000), rel=1e-5)


def test_few_passes_over_a_large_tensor(monkeypatch):
    passes = []
    over_blocks = ranking_module.over_blocks
    monkeypatch.setattr(
        ranking_module, "over_blocks", lambda *a: passes.append(1) or over_blocks(*a)
    )
    tensors = [torch.randn(1_500_000)]
    ranking = Ranking(tensors, 1_200_000, 1_205_000)
    assert len(passes) == 1
    assert ranking.magnitude.size < 0.03 * 1_500_000
    want = numpy.sort(tensors[0].abs().numpy())[1_202_999]
    assert ranking.magnitude_at(1_203_000) == want


@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_flat_is_a_view_in_the_order_of_memory(order, shape):
    weight = torch.randn([shape[d] for d in order]).permute(
        [list(order).index(d) for d in range(4)]
    )
    view = flat(weight)
    assert view.data_ptr() == weight.data_ptr() and view.numel() == weight.numel()
    view.zero_()
    assert not weight.any()


def test_flat_refuses_gaps():
    with pytest.raises(ValueError, match="dense in memory"):
        flat(torch.randn(4, 6)[:, :3])
