"""Bytes that a computation holds and needs, counted at PyTorch's allocators."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch._C._profiler import _ExtraFields_Allocation, _ProfilerEvent
from torch.autograd.profiler import profile, record_function

from .. import checks
from ..arguments import checked
from .axes import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

R = TypeVar("R")


class ActivationMemory(NamedTuple):
    """What :func:`activation_memory` counted, in bytes."""

    saved: int
    """Live when the function had returned: its result and what its autograd graph holds."""
    peak: int
    """The most that was live at one moment while the function ran."""


@checked
def activation_memory(
    fn: Callable[[], R], *, device: torch.device | str | None = None
) -> tuple[R, ActivationMemory]:
    """Call ``fn()`` once and count the bytes that it allocates for tensors.

    Let A be the storages that PyTorch's allocators hand out during the call. Then ``saved`` is the
    sum of the sizes of those in A that are alive after ``fn`` has returned and unreachable
    reference cycles have been collected, and ``peak`` is the largest sum, over all moments of the
    call, of the sizes of those in A that are alive at that moment.

    It follows that

    - ``saved`` holds the result itself, everything that the result's autograd graph saves for
      backward (by PyTorch's own operators in C++ as well as by custom autograd functions), a
      ``.grad`` that ``fn`` made, and whatever else ``fn`` left alive (a neuron's state, say). It
      is 0 when ``fn`` runs forward and backward, keeps no gradient and returns None.
    - a backward pass inside ``fn`` counts like any other part of it, on every thread that the
      autograd engine uses.
    - tensors that existed before the call, their views, and their release during the call count
      for nothing. A storage counts once, however many tensors share it. ``resize_`` counts as the
      new block and the release of the old one.
    - the scratch space that an operator takes from PyTorch's allocator counts in ``peak``; what a
      library takes from the system by itself (oneDNN's scratchpads), pinned and shared memory, and
      arrays made by NumPy do not.

    On a CPU the sizes are exact: a float32 tensor of n elements is 4 n bytes, and a Python number
    that an operator makes into a tensor is 4 or 8. On CUDA a size is the one of the block that the
    caching allocator sets aside, a multiple of 512 bytes, as in
    ``torch.cuda.memory_allocated``; the workspaces of cuBLAS on the current device are made
    before the call and do not count, if CUDA is in use by then.

    Nothing about the computation changes: the count reads the memory events of PyTorch's profiler,
    and works with ``torch.compile``, checkpointing and tensor subclasses. Work that ``fn`` hands
    to Python threads of its own is not seen.

    Args:
        fn: Called once, without arguments.
        device: Count only this device, for example ``'cuda:0'``; ``'cuda'`` means every CUDA
            device. By default all devices together.

    Returns:
        What ``fn`` returned, and the count.

    Raises:
        TypeError: ``fn`` is not callable.
        RuntimeError: A profiler is running already; it can count for only one.

    Example::

        loss, forward = activation_memory(lambda: net(x).square().mean())
        _, step = activation_memory(lambda: net(x).square().mean().backward())
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function without arguments, got {type(fn).__name__}")
    only = None if device is None else checks.device("device", device)
    if torch._C._autograd._profiler_enabled():
        raise RuntimeError(
            "activation_memory cannot count while a profiler or another activation_memory runs"
        )
    _make_workspaces()
    with contextlib.ExitStack() as running:
        with _no_word_on_missing_gpus():
            profiler = running.enter_context(profile(profile_memory=True))
        result = fn()
        with record_function(_RETURNED):
            gc.collect()
    return result, _count(profiler, only)


@checked
def plot_activation_memory(
    measured: Mapping[str, ActivationMemory], ax: Axes | None = None
) -> Axes:
    """Draw saved and peak bytes (in MiB) of several computations as pairs of bars.

    Args:
        measured: What to draw, by name.
        ax: Where to draw; by default the axes of a new figure (``ax.figure``).

    Raises:
        ValueError: ``measured`` is empty.
        RuntimeError: matplotlib is not installed and ``ax`` is not given.
    """
    if not measured:
        raise ValueError("measured is empty: there is nothing to plot")
    ax = axes_or_new(ax)
    places = range(len(measured))
    for field, shift in (("saved", -0.2), ("peak", 0.2)):
        mebibytes = [getattr(memory, field) / 2**20 for memory in measured.values()]
        bars = ax.bar([place + shift for place in places], mebibytes, width=0.4, label=field)
        ax.bar_label(bars, fmt="%.3g")
    ax.set_xticks(places, list(measured))
    ax.set_ylabel("memory (MiB)")
    ax.legend()
    return ax


_LOG_LEVEL = "KINETO_LOG_LEVEL"
_RETURNED = "sj_ext.activation_memory.returned"


def _count(profiler: profile, only: torch.device | None) -> ActivationMemory:
    result = profiler.kineto_results
    assert result is not None  # the profiler has run
    # Threads of the autograd engine have event trees of their own; the clock is common to all.
    events = sorted(_walk(result.experimental_event_tree()), key=lambda event: event.start_time_ns)
    # Addresses that the call took and has not given back. A release of any other address is that
    # of a tensor from before the call.
    live: dict[tuple[str, int], int] = {}
    total = peak = 0
    running = True
    for event in events:
        if event.name == _RETURNED:
            running = False
        block = event.extra_fields
        if not isinstance(block, _ExtraFields_Allocation):
            continue
        if only is not None and (
            block.device.type != only.type or only.index not in (None, block.device.index)
        ):
            continue
        address = (str(block.device), block.ptr)
        if block.alloc_size > 0:
            live[address] = block.alloc_size
            total += block.alloc_size
        else:
            total -= live.pop(address, 0)
        if running:
            peak = max(peak, total)
    return ActivationMemory(saved=total, peak=peak)


def _walk(events: Iterable[_ProfilerEvent]) -> Iterator[_ProfilerEvent]:
    stack = list(events)
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        yield event


@contextlib.contextmanager
def _no_word_on_missing_gpus() -> Iterator[None]:
    """A CUDA build of PyTorch without a driver logs an error when its profiler first starts."""
    if _LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_LOG_LEVEL] = "99"
    try:
        yield
    finally:
        del os.environ[_LOG_LEVEL]


def _make_workspaces() -> None:
    """Have cuBLAS allocate its workspaces, which live on, for this thread and for autograd's."""
    if torch.cuda.is_initialized():
        with torch.enable_grad():
            eye = torch.eye(8, device="cuda", requires_grad=True)
            torch.addmm(eye[0], eye, eye).sum().backward()
