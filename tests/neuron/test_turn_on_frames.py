"""From the call of a turn-on node to its arithmetic it is a few steps for a reader."""

import sys
from pathlib import Path

import pytest
import torch

import sj_ext
from sj_ext import host
from sj_ext.neuron import TurnOnNode

#: what a reader goes through: this package and the host, not PyTorch's own machinery
SOURCES = tuple(str(Path(module.__file__).parent) for module in (sj_ext, host.base))


def frames_to(call, name):
    """The functions on the way from ``call`` to the first call of PyTorch's builtin ``name``."""
    found = []

    def watch(frame, event, argument):
        if event != "c_call" or getattr(argument, "__name__", "") != name or found:
            return
        while frame is not None and frame.f_code is not call.__code__:
            if frame.f_code.co_filename.startswith(SOURCES):
                found.insert(0, frame.f_code.co_qualname)
            frame = frame.f_back

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("learns", [False, True])
def test_seven_frames_at_most(step_mode, learns):
    node = TurnOnNode(step_mode=step_mode)
    x = torch.randn(4, 2, 3, requires_grad=learns)

    def call():
        node(x)

    found = frames_to(call, "mul")
    assert found[-1] == "_leaky_sum", found
    assert len(found) <= 7, found
