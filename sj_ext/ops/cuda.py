"""Compiling and launching CUDA kernels: the one module that knows CuPy.

The kernels run on PyTorch's current stream of the tensors' device, in memory of its allocator.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy
import torch

__all__ = ["Program", "argument", "launch"]


class Program(NamedTuple):
    """CUDA C++ and how it is compiled."""

    code: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, code: str, defines: Mapping[str, int | None]) -> Program:
        """Code with constants from outside; None defines a name alone."""
        given = (f"-D{name}" if v is None else f"-D{name}={v}" for name, v in defines.items())
        return cls(code, ("-std=c++17", *given))


def launch(
    program: Program,
    name: str,
    blocks: int,
    threads: int,
    device: torch.device,
    *arguments: torch.Tensor | float | None,
) -> None:
    """Run a kernel.

    Args:
        program: what to compile, once per device.
        name: the kernel, declared ``extern "C"``.
        blocks: size of the grid.
        threads: size of a block.
        device: a CUDA device.
        *arguments: tensors or None for pointers, int for 64-bit integers, float for float32.

    Raises:
        RuntimeError: CuPy is missing, or cannot compile the kernel here.
    """
    cupy = _cupy()
    with cupy.cuda.Device(device.index), _stream(cupy, device):
        kernel = _kernel(program, name, device.index)
        kernel((blocks,), (threads,), tuple(argument(value) for value in arguments))


def _stream(cupy: Any, device: torch.device) -> Any:
    """PyTorch's current stream of the device, as CuPy's."""
    stream = torch.cuda.current_stream(device)
    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream, device.index)  # CuPy before 14


def argument(value: torch.Tensor | float | None) -> numpy.generic:
    """What a kernel is handed: an address, a 64-bit integer or a float32."""
    if value is None:
        return numpy.uint64(0)
    if isinstance(value, torch.Tensor):
        return numpy.uint64(value.data_ptr())
    return numpy.float32(value) if isinstance(value, float) else numpy.int64(value)


@functools.cache
def _kernel(program: Program, name: str, device_index: int | None) -> Any:
    cupy = _cupy()
    try:
        module = cupy.RawModule(code=program.code, options=program.options, backend="nvrtc")
        return module.get_function(name)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "no message")
        raise RuntimeError(
            f"backend='cupy': CuPy {getattr(cupy, '__version__', '?')} could not compile "
            f"{name} for cuda:{device_index} ({type(error).__name__}: {reason}). Install the CuPy "
            "that is built for this CUDA driver (cupy-cuda12x or cupy-cuda13x), or use "
            "backend='torch'"
        ) from error


@functools.cache
def _cupy() -> Any:
    try:
        import cupy  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise RuntimeError(
            f"backend='cupy' needs CuPy, which cannot be imported ({error}): install cupy-cuda12x "
            "or cupy-cuda13x, or use backend='torch'"
        ) from error
    return cupy
