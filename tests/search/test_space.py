"""Spaces: what they hold, how it is written down, and what is outside of them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sj_ext.search import Architecture, Choice, Space, autosnn, autost, branchless, snasnet
from sj_ext.search.space.autost import candidate
from sj_ext.search.space.snasnet import BACKWARD, FORWARD, genes_of, matrix

SPACES = {
    "autosnn": autosnn(),
    "autosnn, strided": autosnn("strided"),
    "snasnet, forward": snasnet("forward"),
    "snasnet, backward": snasnet("backward"),
    "branchless": branchless(),
    "autost": autost("small"),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@given(seed=st.integers(0, 2**32))
def test_a_draw_is_valid_repeats_and_survives_json(space, seed):
    drawn = space.sample(random.Random(seed))
    assert space.valid(drawn) == space.sample(random.Random(seed))
    assert space.from_json(drawn.to_json()) == drawn
    assert hash(space.from_json(drawn.to_json())) == hash(drawn)
    assert space.repaired(drawn.genes) == drawn.genes


def test_sizes_and_numbers():
    space = autosnn()
    assert space.size == 5**5
    assert branchless().size == 114_791_256
    assert [space.index(space.from_index(i)) for i in (0, 1, 5, 3124)] == [0, 1, 5, 3124]
    assert space.from_index(1).genes[0] == "scb3"  # the first free slot counts least
    assert space.from_index(5).genes[:3] == ("skip", "pool", "scb3")
    assert autosnn("strided").size == 5**8


def test_a_cell_without_a_way_is_cleaned_up():
    """Node 1 is reached from the input and leads nowhere: its edges go."""
    rows = [[0, 3, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    space = snasnet("forward")
    found = space.architecture(*genes_of(rows, backward=False))
    assert matrix(found.genes) == [[0, 0, 0, 2], [0] * 4, [0] * 4, [0] * 4]


@given(seed=st.integers(0, 2**32))
def test_a_backward_cell_keeps_one_direction_of_each_pair(seed):
    rows = matrix(snasnet("backward").sample(random.Random(seed)).genes)
    assert rows[0][3] != 0
    assert all(not (rows[i][j] and rows[j][i]) for i, j in FORWARD)
    assert all(rows[i][i] == 0 for i in range(4))
    assert len(FORWARD + BACKWARD) == 12


@given(seed=st.integers(0, 2**32))
def test_autost_has_genes_up_to_its_depth(seed):
    space = autost("tiny")
    drawn = space.sample(random.Random(seed))
    found = candidate(drawn.genes)
    assert len(found.ratios) == len(found.heads) == drawn.genes[0]
    deeper = space.architecture(10, *drawn.genes[1:])
    assert None not in deeper.genes


def test_a_space_of_ones_own():
    space = Space(
        "mine",
        {"width": Choice((8, 16)), "depth": Choice((1, 2, 3)), "stem": Choice(("conv",))},
        wrong=lambda genes: "too large" if genes[0] * genes[1] > 32 else None,
    )
    assert space.architecture(8, 3) == space.architecture(width=8, depth=3)
    assert space.architecture(8, 3).genes == (8, 3, "conv")
    with pytest.raises(ValueError, match="too large"):
        space.architecture(16, 3)
    assert "mine, 6 ways" in repr(space)


def test_bad_input():
    space = autosnn()
    good = space.from_index(7)
    with pytest.raises(ValueError, match="another|'autosnn/strided'"):
        autosnn("strided").valid(good)
    with pytest.raises(ValueError, match="slot0 must be one of"):
        space.architecture("srb7", *good.genes[1:])
    with pytest.raises(ValueError, match="one per slot"):
        space.architecture("srb3")
    with pytest.raises(TypeError, match="Architecture"):
        space.valid(good.genes)
    with pytest.raises(TypeError, match=r"random\.Random"):
        space.sample(None)
    with pytest.raises(TypeError, match=r"random\.Random"):
        space.sample(3)
    with pytest.raises(ValueError, match="JSON"):
        space.from_json("[1, 2")
    with pytest.raises(ValueError, match="number"):
        space.from_index(3125)
    with pytest.raises(ValueError, match="options"):
        Choice(())
    with pytest.raises(ValueError, match="options"):
        Choice(("a", "a"))
    with pytest.raises(TypeError, match="Choice"):
        Space("x", {"a": ("b",)})
    with pytest.raises(ValueError, match="0->3"):
        snasnet("forward").architecture(*["zero"] * 6)
    with pytest.raises(ValueError, match="both"):
        snasnet("backward").valid(
            Architecture("snasnet/backward", ("conv3",) * 6 + ("conv1",) + ("zero",) * 5)
        )
    for make in (autosnn, snasnet, autost):
        with pytest.raises(ValueError, match="none"):
            make("none")
