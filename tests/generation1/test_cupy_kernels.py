"""SpikingJelly 0.0.0.0.14: IMP nodes and our surrogates on the host's own CuPy kernels.

Without a GPU, the kernels' source runs on the CPU, through the host's code for ``backend='cupy'``.
"""

import itertools

import cupy_on_cpu
import pytest
import torch
from nvrtc import ARCHITECTURES, compile_for
from spikingjelly.activation_based.auto_cuda import neuron_kernel

from sj_ext import host
from sj_ext.host import generation1
from sj_ext.neuron import IMPIFNode, IMPLIFNode
from sj_ext.surrogate import DSpike, Rect

SURROGATES = [Rect(), Rect(2.0), DSpike(), host.surrogate.Sigmoid()]


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    cupy_on_cpu.install(monkeypatch)


def on_cupy(node, monkeypatch):
    """The node, set to run on CuPy where no CUDA device is."""
    monkeypatch.setattr(node, "check_backend", lambda x: None)
    node._backend = "cupy"
    return node


@pytest.mark.parametrize("surrogate_function", SURROGATES, ids=repr)
@pytest.mark.parametrize("v_reset", [None, -0.1])
@pytest.mark.parametrize("imp_class", [IMPIFNode, IMPLIFNode])
def test_kernels_give_the_spikes_and_gradients_of_torch(
    imp_class, v_reset, surrogate_function, monkeypatch
):
    kwargs = {"decay_input": False} if imp_class is IMPLIFNode else {}
    kwargs |= {"v_reset": v_reset, "surrogate_function": surrogate_function, "step_mode": "m"}
    x = torch.randn(5, 3, 7) + 0.3
    weights = torch.randn_like(x)
    results = []
    node = imp_class(**kwargs, imp_shape="neuron")
    node(x)
    host.functional.reset_net(node)
    for backend in ("torch", "cupy"):
        if backend == "cupy":
            on_cupy(node, monkeypatch)
        node.zero_grad()
        inputs = x.clone().requires_grad_()
        y = node(inputs)
        (y * weights).sum().backward()
        results.append((y.detach(), inputs.grad, node.theta.grad.clone(), node.v.detach()))
        host.functional.reset_net(node)
    assert 0 < results[0][0].sum() < x.numel()
    assert torch.equal(results[0][0], results[1][0])
    for want, got in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert results[1][2].abs().sum() > 0


def test_mended_check_still_refuses_a_wrong_type(monkeypatch):
    node = on_cupy(IMPIFNode(step_mode="m"), monkeypatch)
    node(torch.rand(2, 3, 4))
    with pytest.raises(TypeError, match="x_seq.*float"):
        node.forward_kernel.check_ctypes({"x_seq": torch.zeros(3, dtype=torch.float16)})


def test_kernels_follow_a_change_of_dtype_and_are_kept_otherwise(monkeypatch):
    node = on_cupy(IMPIFNode(step_mode="m"), monkeypatch)
    node(torch.rand(2, 3, 4))
    first = node.forward_kernel
    host.functional.reset_net(node)
    node(torch.rand(2, 3, 4))
    assert node.forward_kernel is first
    generation1._give_working_kernels(node, torch.float16)
    assert node.forward_kernel is not first and node.forward_kernel.dtype == "half2"


@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_every_kernel_with_our_surrogates_compiles_for_every_card(name):
    for arch in ARCHITECTURES:
        for function, dtype, hard_reset in itertools.product(
            (Rect(), DSpike()), ("float", "half2"), (True, False)
        ):
            extra = {} if name == "IFNode" else {"decay_input": True}
            kernel = getattr(neuron_kernel, f"{name}BPTTKernel")(
                surrogate_function=function.cuda_codes,
                hard_reset=hard_reset,
                detach_reset=False,
                dtype=dtype,
                **extra,
            )
            compile_for(arch, kernel.full_codes)
