"""Compile CUDA C++ to machine code without a GPU, with NVRTC from the packages torch brings."""

from pathlib import Path

from cuda.bindings import nvrtc

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def _include_folder():
    import nvidia

    for root in nvidia.__path__:
        for header in Path(root).glob("*/include/cuda_fp16.h"):
            return header.parent
    raise RuntimeError("cuda_fp16.h is not installed; it comes with nvidia-cuda-runtime")


def compile_for(arch, source, *options):
    """Machine code (CUBIN) of ``source`` for ``arch``, and the compiler's log.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's log.
    """
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    arguments = [f"--gpu-architecture={arch}", f"-I{_include_folder()}", *options]
    (status,) = nvrtc.nvrtcCompileProgram(
        program, len(arguments), [argument.encode() for argument in arguments]
    )
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    # never one byte: Python has one object for each, and NVRTC writes into what it is given
    log = b" " * (size + 1)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{arch}: {status}\n{log.rstrip().decode()}")
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = b" " * (size + 1)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    return cubin[:size], log.rstrip(b" ").decode()
