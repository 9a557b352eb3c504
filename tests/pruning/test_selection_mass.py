"""A mass of equal weights above zero, with smaller and larger ones beside it, is cut exactly."""

import pytest
import torch
from pruning.test_selection import sorted_keys

from sj_ext.pruning.selection import Ranking, cut_mask_


@pytest.mark.parametrize("small", [True, False], ids=["one look", "sampled"])
def test_cuts_within_a_mass(small, monkeypatch):
    if not small:
        monkeypatch.setattr("sj_ext.pruning.selection.ranking.SMALL", 0)
        monkeypatch.setattr("sj_ext.pruning.selection.ranking.SAMPLE", 64)
    tensors = []
    for length in (400, 250, 150):
        tensor = torch.randn(length).sign() * 0.5
        places = torch.randperm(length)
        tensor[places[: length // 10]] = torch.rand(length // 10) * 0.4 + 0.01
        tensor[places[length // 10 : length // 5]] = torch.rand(length // 5 - length // 10) + 0.6
        tensors.append(tensor)
    keys = sorted_keys(tensors)
    below, mass = (sum(test(v) for v, _, _ in keys) for test in (lambda v: v < 0.5, (0.5).__eq__))
    for count in (below, below + 1, below + mass // 2, below + mass - 1, below + mass):
        ranking = Ranking(tensors, count, count)
        chosen = keys[:count]
        wanted = [sum(i == t for _, i, _ in chosen) for t in range(len(tensors))]
        assert ranking.counts(count) == wanted
        assert ranking.energy(count) == pytest.approx(sum(v * v for v, _, _ in chosen), rel=1e-5)
        squares = [sum(v * v for v, i, _ in chosen if i == t) for t in range(len(tensors))]
        assert ranking.energies(count) == pytest.approx(squares, rel=1e-4, abs=1e-4)
        kept = [torch.empty_like(tensor, dtype=torch.bool) for tensor in tensors]
        cut_mask_(kept, tensors, ranking.cut(count))
        cut = {(i, int(j)) for i, mask in enumerate(kept) for j in (~mask).nonzero()}
        assert cut == {(i, j) for _, i, j in chosen}
