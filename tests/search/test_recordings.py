"""Recordings of the public search programs: the smallest that cover each method."""

import pathlib

import pytest
from published.check_search import CHECKS, check

RECORDINGS = sorted((pathlib.Path(__file__).parent / "recordings").glob("*.npz"))


@pytest.mark.parametrize("path", RECORDINGS, ids=[path.stem for path in RECORDINGS])
def test_ours_equals_the_public_program(path):
    assert check(path).bad == []


def test_every_kind_of_recording_is_there():
    stems = [path.stem for path in RECORDINGS]
    assert all(any(stem.startswith(kind) for stem in stems) for kind in CHECKS)
