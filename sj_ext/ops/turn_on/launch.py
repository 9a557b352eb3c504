"""How ``kernel.cu`` is compiled and launched: the one module that knows CuPy.

The kernels run on PyTorch's current stream of the tensors' device, in memory of its allocator.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

__all__ = ["DTYPES", "Variant", "launch", "options", "source"]

#: dtypes of the input, in the order of KIND in kernel.cu
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: neurons per thread
COLUMNS = 8

#: steps whose potentials a thread holds, where a surrogate needs them
SEGMENT = 8


class Variant(NamedTuple):
    """What a compiled copy of ``kernel.cu`` is for."""

    dtype: torch.dtype
    aligned: bool
    block: int
    #: CUDA statements that assign a surrogate's gradient at ``above`` to ``window``; empty for a
    #: rectangular window, which is read from bits
    surrogate: str = ""
    #: whether a rectangular window has both its ends inside
    closed: bool = False

    @classmethod
    def of(
        cls, dtype: torch.dtype, columns: int, surrogate: str = "", closed: bool = False
    ) -> Variant:
        """The variant for rows of ``columns`` elements; bits written by it are read by it.

        Raises:
            ValueError: there are more neurons than the kernel can count.
        """
        if columns >= 2**31:
            raise ValueError(f"x_seq must have fewer than 2**31 elements per step, got {columns}")
        aligned = columns * dtype.itemsize % 16 == 0
        # small blocks spread a small job over more of the card
        return cls(dtype, aligned, 64 if columns < 2**19 else 256, surrogate, closed)

    def blocks(self, columns: int) -> int:
        """How many blocks carry ``columns`` neurons."""
        return -(-columns // (COLUMNS * self.block))


def source(variant: Variant) -> str:
    """CUDA C++ of a variant."""
    text = Path(__file__).with_name("kernel.cu").read_text(encoding="utf-8")
    return text.replace("    SURROGATE_CODE\n", f"    {variant.surrogate}\n")


def options(variant: Variant) -> tuple[str, ...]:
    """Compiler options of a variant."""
    defines = {
        "KIND": DTYPES.index(variant.dtype),
        "ALIGNED": int(variant.aligned),
        "BLOCK": variant.block,
        "CLOSED": int(variant.closed),
    }
    rectangular = () if variant.surrogate else ("-DRECTANGULAR",)
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in defines.items()), *rectangular)


def launch(variant: Variant, name: str, blocks: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel of ``kernel.cu``.

    Args:
        variant: what to compile, once per device.
        name: the kernel.
        blocks: size of the grid.
        device: a CUDA device.
        *arguments: tensors or None for pointers, int for 64-bit integers, float for float32.

    Raises:
        RuntimeError: CuPy is missing, or cannot compile the kernel here.
    """
    cupy = _cupy()
    with cupy.cuda.Device(device.index), _stream(cupy, device):
        kernel = _kernel(variant, name, device.index)
        kernel((blocks,), (variant.block,), tuple(_argument(value) for value in arguments))


def _stream(cupy: Any, device: torch.device) -> Any:
    """PyTorch's current stream of the device, as CuPy's."""
    stream = torch.cuda.current_stream(device)
    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream, device.index)  # CuPy before 14


def _argument(value: torch.Tensor | float | None) -> numpy.generic:
    if value is None:
        return numpy.uint64(0)
    if isinstance(value, torch.Tensor):
        return numpy.uint64(value.data_ptr())
    return numpy.float32(value) if isinstance(value, float) else numpy.int64(value)


@functools.cache
def _kernel(variant: Variant, name: str, device_index: int) -> Any:
    cupy = _cupy()
    try:
        module = cupy.RawModule(code=source(variant), options=options(variant), backend="nvrtc")
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
