"""From the public call to the arithmetic on the weights it is not far."""

import sys
from pathlib import Path

import pytest
from pruning.nets import mlp, move

import sj_ext
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, Resource

PACKAGE = str(Path(sj_ext.__file__).parent)
#: what reads or writes the weights themselves
ARITHMETIC = {"_scan_numpy", "_scan_compiled", "_scan_torch", "_at_most", "_count_below"}
ARITHMETIC |= {"zero_below_", "scale_between_", "hold_"}


def deepest(call):
    """Frames of the package from ``call`` to the deepest of the arithmetic, both counted."""
    depth = most = 0

    def watch(frame, event, arg):
        nonlocal depth, most
        name = frame.f_code.co_name  # comprehensions are no frames of their own from 3.12 on
        if name.startswith("<") and name != "<lambda>":
            return
        if frame.f_code.co_filename.startswith(PACKAGE) and event in ("call", "return"):
            depth += 1 if event == "call" else -1
            if name in ARITHMETIC:
                most = max(most, depth)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert depth == 0
    return most


@pytest.mark.parametrize("resource", ["params", "own"])
@pytest.mark.parametrize("cls", [MinimaxPruner, GlobalMagnitudePruner])
def test_seven_frames_at_most(cls, resource):
    if resource == "own":
        resource = Resource("own", lambda layer, share: layer.weights * share)
    model = mlp()
    pruner = cls(model, budget=0.2, resource=resource, first=True, schedule=12)
    seen = []
    while not pruner.finished:
        move(model)
        seen.append(deepest(pruner.step))
    assert 4 <= max(seen) <= 7
