"""Recordings of public programs: the smallest that cover each method lie in ``recordings``."""

import pathlib

import pytest
from published.comparison import differences

RECORDINGS = sorted((pathlib.Path(__file__).parent / "recordings").glob("*.npz"))


@pytest.mark.parametrize("path", RECORDINGS, ids=[path.stem for path in RECORDINGS])
def test_ours_equals_the_public_program(path):
    assert differences(path) == []
