"""What the turn-on neuron's tests share: the oracle, and kernel.cu compiled for the host."""

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sj_ext.ops import cuda
from sj_ext.ops.turn_on import launch as cuda_launch
from sj_ext.ops.turn_on import naive


def loss(outputs, weights):
    """A weighted sum of spikes, potentials and last potential, whichever are there."""
    spike, v_last, v_seq = outputs
    by_spike, by_v_seq, by_v_last = (weight.to(v_last) for weight in weights)
    total = (spike.to(v_last.dtype) * by_spike).sum() + (v_last * by_v_last).sum()
    return total if v_seq is None else total + (v_seq * by_v_seq).sum()


def _float64_gradients(case, store_v_seq, sizes_only):
    """Gradients of :func:`loss` by float64 autograd through the float32 run's windows.

    With ``sizes_only`` every factor is replaced by its size: the sums of the sizes of the terms
    that make the gradients, which is what their rounding is relative to.
    """
    names = "x_seq", "v_init", "decay"
    _, potentials = naive.turn_on(*(case[name] for name in names), 0.0, lambda above: above)
    size, half_width = (potentials - case["v_threshold"]).abs(), 0.5 / case["alpha"]
    window = (size <= half_width if case.get("closed") else size < half_width).double()
    inputs = [case[name].double() for name in names]
    weights = case["weights"]
    if sizes_only:
        inputs = [tensor.abs() for tensor in inputs]
        weights = [weight.abs() for weight in weights]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    _, v_seq = naive.turn_on(*inputs, 0.0, lambda above: above)
    outputs = case["alpha"] * window * v_seq, v_seq[-1], v_seq if store_v_seq else None
    return torch.autograd.grad(loss(outputs, weights), inputs)


def assert_gradients(gradients, case, store_v_seq, rtol=1e-5):
    """Gradients of x, v_init and decay: within ``rtol`` of the sizes of their terms."""
    expected = _float64_gradients(case, store_v_seq, sizes_only=False)
    sizes = _float64_gradients(case, store_v_seq, sizes_only=True)
    for name, got, want, size in zip("xva", gradients, expected, sizes, strict=True):
        assert got.shape == want.shape
        rounding = 0
        limits = torch.finfo(got.dtype)
        fits = want.abs() <= limits.max
        assert got[want.abs() > limits.max * 1.01].isinf().all()  # a sum that 16 bits cannot hold
        if got.dtype.itemsize == 2:  # rounded once more, at the end
            rounding = limits.eps * want.abs().clamp_min(limits.smallest_normal)
        error = ((got.double() - want).abs() - rounding).div(size.clamp_min(1e-30))
        error = error[fits].max() if fits.any() else 0
        assert error <= rtol, f"gradient of {name}: {error}"


def random_case(shape, decays, *, dtype=torch.float32, v_init=True, alpha=1.0, device="cpu"):
    """Inputs [T, N, C, *] with one decay or one per channel."""
    decay = torch.tensor(decays)
    if len(decays) > 1:
        decay = decay.view(-1, *[1] * (len(shape) - 3))
    case = {
        "x_seq": (torch.randn(shape) * 0.7).to(dtype),
        "v_init": torch.randn(shape[1:]) * v_init,
        "decay": decay,
        "v_threshold": 0.5,
        "alpha": alpha,
        "weights": [torch.randn(shape).to(dtype), torch.randn(shape), torch.randn(shape[1:])],
    }
    for name in ("x_seq", "v_init", "decay"):
        case[name] = case[name].to(device)
    case["weights"] = [weight.to(device) for weight in case["weights"]]
    return case


@pytest.fixture(scope="session")
def reference():
    """The oracle's functions."""
    return SimpleNamespace(loss=loss, assert_gradients=assert_gradients, random_case=random_case)


_ENTRY = """
extern "C" void host_{name}(unsigned blocks, {parameters}) {{
    host::launch(blocks, BLOCK, [&] {{ {name}({arguments}); }});
}}
"""


def _entry(text, name):
    """A function that runs kernel ``name`` over a grid, from its signature in the source."""
    start = text.index(f"{name}(\n") + len(name) + 1
    parameters = " ".join(text[start : text.index(") {", start)].split())
    arguments = ", ".join(part.split()[-1] for part in parameters.split(","))
    return _ENTRY.format(name=name, parameters=parameters, arguments=arguments)


@pytest.fixture(scope="session")
def host_kernel(tmp_path_factory):
    """Kernel ``name`` of a source, compiled by the C++ compiler: ``kernel(blocks, arguments)``."""
    folder, libraries = tmp_path_factory.mktemp("host_kernels"), {}
    types = {"uint64": ctypes.c_void_p, "int64": ctypes.c_longlong, "float32": ctypes.c_float}

    def library(code, options):
        if (code, options) not in libraries:
            text = f'#include "host_cuda.h"\n{code}'
            text += _entry(code, "turn_on_forward") + _entry(code, "turn_on_backward")
            path = folder / f"kernel{len(libraries)}"
            path.with_suffix(".cpp").write_text(text)
            command = ["g++", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w"]
            command += [*options, f"-I{Path(__file__).parent}"]
            command += [str(path.with_suffix(".cpp")), "-o", str(path.with_suffix(".so"))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            libraries[code, options] = ctypes.CDLL(str(path.with_suffix(".so")))
        return libraries[code, options]

    def kernel(code, options, name):
        function = getattr(library(code, options), f"host_{name}")
        function.restype = None

        def run(blocks, arguments):
            function.argtypes = [ctypes.c_uint, *(types[value.dtype.name] for value in arguments)]
            function(blocks, *(value.item() for value in arguments))

        return run

    return kernel


@pytest.fixture(scope="session")
def host_launch(host_kernel):
    """In place of ``launch``: the kernel on the host, run over the whole grid."""

    def launch(variant, name, blocks, device, *arguments):
        run = host_kernel(*cuda_launch.program(variant), name)
        run(blocks, [cuda.argument(value) for value in arguments])

    return launch
