"""Running a level a second time exactly as it ran the first time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.amp.autocast_mode import is_autocast_available

from ...recomputation import replaying
from .dynamics import run_level
from .fingerprints import Fingerprints, relative_differences
from .recorder import Recorder
from .stand_ins import StandIns

__all__ = ["AutocastState", "Replay"]


class AutocastState:
    """Autocast as it was when this object was made, for one device type and for the CPU."""

    def __init__(self, device_type: str):
        self._settings: list[dict[str, Any]] = [
            {
                "device_type": kind,
                "enabled": torch.is_autocast_enabled(kind),
                "dtype": torch.get_autocast_dtype(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for kind in dict.fromkeys((device_type, "cpu"))
            if is_autocast_available(kind)
        ]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Autocast as it was."""
        with contextlib.ExitStack() as stack:
            for settings in self._settings:
                stack.enter_context(torch.autocast(**settings))
            yield


class Replay:
    """Runs levels again, and tells at the end whether they gave what they gave before.

    Args:
        recorder: of the call.
        kept: the tensors that it kept.
        stand_ins: of the levels' parameters and buffers, in place.
    """

    def __init__(self, recorder: Recorder, kept: Sequence[torch.Tensor], stand_ins: StandIns):
        self._recorder, self._kept, self._stand_ins = recorder, kept, stand_ins
        self._fingerprints = Fingerprints()
        self._found: dict[tuple[range, int], torch.Tensor] = {}

    def run(
        self, span: range, level: int, below: torch.Tensor, above: torch.Tensor | None
    ) -> torch.Tensor:
        """F_level over a span again, with its graph."""
        call, trace = self._recorder.call, self._recorder.trace(span, level)
        random: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if trace.start is not None:
            start = trace.start
            states = start if isinstance(start, int) else [self._kept[i] for i in start]
            random = self._recorder.random.started_from(states)
        memories = self._stand_ins.memories_kept(call.module(span, level))
        with torch.enable_grad(), replaying(), memories, random:
            f = run_level(call, span, level, below, above)
        if f.shape != trace.shape:
            self._other_output(span, level, f"shape {list(f.shape)}")
        if trace.fingerprint is not None:
            self._found[span, level] = self._fingerprints.of(f)
        return f

    def check(self, tolerance: float | None) -> None:
        """One look at all differences at the end: on a GPU every look waits for the device.

        Raises:
            RuntimeError: an output differs by more than ``tolerance``; None allows everything.
        """
        if not self._found or tolerance is None:
            return
        places = [self._recorder.trace(*key).fingerprint for key in self._found]
        before = [self._kept[place] for place in places if place is not None]
        differences = relative_differences(list(self._found.values()), before)
        bad = ~(differences <= tolerance)  # also where it is not a number
        if bad.any():
            worst = int(bad.nonzero()[0])
            span, level = list(self._found)[worst]
            how = f"a relative difference of {differences[worst]:.2g}"
            self._other_output(span, level, how)

    def _other_output(self, span: range, level: int, how: str) -> None:
        name = type(self._recorder.call.module(span, level)).__name__
        raise RuntimeError(
            f"levels: level {level} ({name}) gave another output when step {span.start} was run "
            f"again for the backward pass ({how}). A level must compute the same from the same "
            "inputs: it may not keep a state over time, nor read random numbers from outside "
            "PyTorch's generators, nor depend on buffers that its forward pass changes. Use "
            "memory='autograd' for such levels, or raise replay_tolerance if its kernels are known "
            "to vary"
        )
