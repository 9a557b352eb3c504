"""The selection against sorting, on values that lie as close together as floats can."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_ext.pruning.selection import Ranking, cut_mask_, zero_below_

TINY = 2.0**-149
EDGES = [0.0, TINY, 2 * TINY, 2.0**-126, 1.0, math.nextafter(1.0, 2.0), 1.0 + 2**-23, 3e38]
values = st.one_of(
    st.sampled_from(EDGES),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(0, 1, width=16),
)
lists = st.lists(st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=40), min_size=1,
                 max_size=4)  # fmt: skip


@settings(max_examples=100)
@given(drawn=lists, ends=st.tuples(st.floats(0, 1), st.floats(0, 1)), half=st.booleans(),
       block=st.sampled_from([None, 16, 70]), sample=st.sampled_from([4, 60]),
       fast=st.booleans())  # fmt: skip
def test_any_values_are_ranked_as_sorting_ranks_them(drawn, ends, half, block, sample, fast):
    tensors = [torch.tensor([-v if minus else v for v, minus in row]) for row in drawn]
    if half:  # some of another dtype, whose values are compared with the others'
        tensors[0] = tensors[0].clamp(-6e4, 6e4).half()
    keys = sorted(
        (float(value), i, j)
        for i, tensor in enumerate(tensors)
        for j, value in enumerate(tensor.abs().double().tolist())
    )
    first, last = sorted(round(end * len(keys)) for end in ends)
    with pytest.MonkeyPatch.context() as patch:
        if block is not None:
            patch.setattr("sj_ext.pruning.selection.ranking.SMALL", 0)
            patch.setattr("sj_ext.pruning.selection.blocks.BLOCK", block)
            patch.setattr("sj_ext.pruning.selection.ranking.SAMPLE", sample)
        if fast:
            patch.setattr("sj_ext.pruning.selection.compiled.LARGE", 0)
        ranking = Ranking(tensors, first, last)
        for count in {first, (first + last) // 2, last}:
            below = keys[:count]
            wanted = [sum(i == t for _, i, _ in below) for t in range(len(tensors))]
            assert ranking.counts(count) == wanted
            if count:
                assert ranking.magnitude_at(count) == below[-1][0]
            keep = [torch.ones(len(t), dtype=torch.bool) for t in tensors]
            for _, i, j in below:
                keep[i][j] = False
            masks, zeroed = [~k for k in keep], [t.clone() for t in tensors]
            cut_mask_(masks, tensors, ranking.cut(count))
            zero_below_(zeroed, ranking.cut(count))
            for t, k, mask, z in zip(tensors, keep, masks, zeroed, strict=True):
                assert torch.equal(mask, k) and torch.equal(z, t * k)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 500, 999])
@pytest.mark.parametrize("fast", [False, True])
def test_what_is_not_finite_is_refused_or_the_largest(bad, place, fast, monkeypatch):
    """A pruner refuses both before it ranks; ranked all the same, infinity is no silent zero."""
    monkeypatch.setattr("sj_ext.pruning.selection.compiled.LARGE", 0 if fast else math.inf)
    tensors = [torch.randn(1000), torch.randn(10)]
    tensors[0][place] = bad
    if math.isnan(bad):
        with pytest.raises(ValueError, match="NaN"):
            Ranking(tensors, 300, 400)
        return
    keep = [torch.zeros(len(t), dtype=torch.bool) for t in tensors]
    cut_mask_(keep, tensors, Ranking(tensors, 1009, 1009).cut(1009))
    assert keep[0][place] and sum(int(k.sum()) for k in keep) == 1
