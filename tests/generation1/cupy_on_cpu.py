"""CuPy as far as SpikingJelly 0.0.0.0.14 needs it, running the generated kernels on the CPU.

The CUDA source is compiled as C++, and every thread of the grid is called in turn. That is enough
for kernels whose threads do not talk to each other.
"""

import ctypes
import subprocess
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy

PRELUDE = """
#include <math.h>
#define __global__
struct Position { int x; };
static Position blockIdx, blockDim, threadIdx;
extern "C" void place(int block, int threads, int thread)
{ blockIdx.x = block; blockDim.x = threads; threadIdx.x = thread; }
"""


class Array(numpy.ndarray):
    """An array that tells its device as CuPy's do; tensors on the CPU say -1."""

    device = SimpleNamespace(id=-1)


class RawKernel:
    """Compiled once, called with a grid, a block and pointers."""

    def __init__(self, code, name, options=(), backend="nvcc"):
        folder = Path(tempfile.mkdtemp())
        (folder / "cuda_fp16.h").write_text("")
        (folder / "kernel.cpp").write_text(PRELUDE + code)
        library = folder / "kernel.so"
        command = ["g++", "-shared", "-fPIC", "-ffp-contract=off", f"-I{folder}", "-o", library]
        subprocess.run([*command, folder / "kernel.cpp"], check=True)
        self._library = ctypes.CDLL(str(library))
        self._kernel = getattr(self._library, name)

    def __call__(self, grid, block, arguments):
        pointers = [ctypes.c_void_p(a if isinstance(a, int) else a.ctypes.data) for a in arguments]
        for b in range(grid[0]):
            for t in range(block[0]):
                self._library.place(b, block[0], t)
                self._kernel(*pointers)


def asarray(value, dtype=None):
    return numpy.asarray(value, dtype=dtype).view(Array)


def install(monkeypatch):
    """Let the host's kernel modules find this in place of CuPy."""
    from spikingjelly.activation_based import cuda_utils
    from spikingjelly.activation_based.auto_cuda import base, neuron_kernel

    fake = SimpleNamespace(
        ndarray=Array,
        asarray=asarray,
        ascontiguousarray=lambda a: numpy.ascontiguousarray(a).view(Array),
        RawKernel=RawKernel,
    )
    for module in (base, neuron_kernel):
        monkeypatch.setattr(module, "cupy", fake)
    monkeypatch.setattr(cuda_utils, "DeviceEnvironment", lambda device: nullcontext())
