"""What a call runs within: which checkpointed functions, for the first time or again.

PyTorch keeps a record of each checkpointed function. It is found on the Python stack, in the frames
of ``torch/utils/checkpoint.py``: those of both of its kinds, and of the wrappers of FSDP, which
call it. What is noted of a function is kept with its record, and ends with it.

The attribute ``within_checkpoint`` of this module tells whether a call may have to be computed from
a state that is not the present one. It is worked out whenever it is read. A compiler that has read
it looks at it again before it runs what it has compiled, and so never takes a graph from outside a
checkpoint for one inside.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint

__all__ = ["Notes", "find", "replaying", "replays"]

#: what is noted of one checkpointed function
Notes = dict[Any, Any]

#: the name under which notes are kept at PyTorch's record
_NOTES = "_sj_ext_notes"

_replays = 0


def __getattr__(name: str) -> Any:
    if name != "within_checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if torch._C._current_graph_task_id() == -1:
        if torch.is_inference_mode_enabled():
            return False
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if torch.is_grad_enabled() and hooks is None:
            return False
    elif not _replays:
        return True
    first, again, _ = find()
    return bool(first) or again is not None


@contextlib.contextmanager
def replaying() -> Iterator[None]:
    """Within this, calls during a backward pass start from the state that their caller has set.

    For code of this package that computes something again and brings the states with it.
    """
    global _replays
    _replays += 1
    try:
        yield
    finally:
        _replays -= 1


def replays() -> bool:
    """Whether code of this package computes something again now, and has set the states."""
    return _replays > 0


def find() -> tuple[list[Notes], Notes | None, Notes | None]:
    """The notes of the checkpointed functions that run now.

    Returns:
        Of those that run for the first time, from the inside out, up to the innermost one that runs
        again; of this one; and, of the first ones, of the innermost reentrant one, which cuts the
        gradients of what comes in and goes out by a state.
    """
    first: list[Notes] = []
    border: Notes | None = None
    frame: FrameType | None = sys._getframe(1)
    names = vars(torch_checkpoint)
    while frame is not None:
        if frame.f_globals is names:
            code, local = frame.f_code, frame.f_locals
            if code.co_name == "unpack_hook" and "frame" in local:
                return first, _notes(local["frame"]), border
            if code.co_name == "backward" and "ctx" in local:
                return first, _notes(local["ctx"]), border
            if code.co_name == "forward" and "ctx" in local and "run_function" in local:
                first.append(_notes(local["ctx"]))
                border = first[-1] if border is None else border
            elif code.co_name == "checkpoint" and "gen" in local:
                record = local["gen"].gi_frame.f_locals.get("new_frame")
                if record is not None:
                    # to stop early it raises, which the TorchScript of 0.0.0.0.14 takes for a fault
                    record.early_stop = False
                    first.append(_notes(record))
        frame = frame.f_back
    return first, None, border


def _notes(record: Any) -> Notes:
    notes: Notes | None = getattr(record, _NOTES, None)
    if notes is None:
        notes = {}
        setattr(record, _NOTES, notes)
    return notes
