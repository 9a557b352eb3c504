"""The operator around the kernel: what PyTorch has to know about it, checked on its CPU twin."""

import builtins

import pytest
import torch

from sj_ext.neuron import TurnOnNode
from sj_ext.ops import cuda
from sj_ext.ops.turn_on import launch as cuda_launch
from sj_ext.ops.turn_on import naive, op
from sj_ext.surrogate import DSpike, Rect

FORWARD = torch.ops.sj_ext.turn_on_forward_r2.default
BACKWARD = torch.ops.sj_ext.turn_on_backward_r2.default


def run(case, surrogate_function=None, store_v_seq=False):
    """Outputs of the operator's caller, and its inputs with gradients on."""
    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]
    outputs = op.turn_on(
        *inputs,
        v_threshold=case["v_threshold"],
        surrogate_function=surrogate_function or Rect(alpha=case["alpha"]),
        store_v_seq=store_v_seq,
    )
    return outputs, inputs


@pytest.mark.parametrize("dtype", op.DTYPES, ids=str)
@pytest.mark.parametrize("store_v_seq", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_opcheck_forwards(reference, dtype, store_v_seq, per_channel):
    case = reference.random_case((3, 2, 4, 3), [0.5, -0.7, 0.9, 1.0][: 4 if per_channel else 1])
    decay = case["decay"].reshape(-1)
    for v_init in (case["v_init"], None):
        for requires_grad in (False, True):
            x_seq = case["x_seq"].to(dtype).requires_grad_(requires_grad)
            inputs = x_seq, v_init, decay, 3 if per_channel else 1, 0.5, 1.0, False, ""
            torch.library.opcheck(FORWARD, (*inputs, requires_grad, store_v_seq))


def test_opcheck_with_everything_learned(reference):
    case = reference.random_case((3, 2, 4, 3), [0.5, -0.7, 0.9, 1.0])
    inputs = [case["x_seq"], case["v_init"], case["decay"].reshape(-1)]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    torch.library.opcheck(FORWARD, (*inputs, 3, 0.5, 0.8, True, "", True, True))


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 2, 0)])
def test_opcheck_of_nothing(shape):
    x_seq = torch.randn(shape, requires_grad=True)
    torch.library.opcheck(
        FORWARD, (x_seq, None, torch.tensor([0.5]), 1, 0.5, 1.0, False, "", True, False)
    )


@pytest.mark.parametrize("decay_learns", [False, True])
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_opcheck_backwards(reference, decay_learns, store_v_seq):
    case = reference.random_case((3, 2, 4, 3), [0.5, -0.7, 0.9, 1.0])
    decay = case["decay"].reshape(-1)
    constants = 3, 0.5, 1.0, False, ""
    bits = FORWARD(case["x_seq"], case["v_init"], decay, *constants, True, store_v_seq)[2]
    by_spike, by_v_seq, by_v_last = case["weights"]
    kept = (case["x_seq"], case["v_init"]) if decay_learns else (None, None)
    gradients = by_spike, by_v_last, by_v_seq if store_v_seq else None
    for v_init_learns in (False, True):
        learning = decay_learns, v_init_learns
        torch.library.opcheck(BACKWARD, (*gradients, bits, *kept, decay, *constants, *learning))
    torch.library.opcheck(
        BACKWARD, (by_spike, None, None, bits, *kept, decay, *constants, decay_learns, True)
    )


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_autograd_through_the_operator(reference, per_channel, store_v_seq):
    decays = (torch.rand(4) + 0.1).tolist()
    case = reference.random_case((9, 2, 4, 5), decays[: 4 if per_channel else 1], alpha=0.8)
    outputs, inputs = run(case, store_v_seq=store_v_seq)
    spike, v_seq = naive.turn_on(*inputs, 0.5, Rect(alpha=0.8))
    assert torch.equal(outputs[0], spike) and torch.equal(outputs[1], v_seq[-1])
    gradients = torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs)
    reference.assert_gradients(gradients, case, store_v_seq)


def test_the_last_potential_alone_has_gradients_too(reference):
    case = reference.random_case((9, 2, 4), [0.7])
    (_, v_last, _), inputs = run(case)
    got = torch.autograd.grad(v_last.square().sum(), inputs)
    want = torch.autograd.grad(naive.turn_on(*inputs, 0.5, Rect())[1][-1].square().sum(), inputs)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_compiles_into_one_graph_with_one_operator(reference):
    case = reference.random_case((5, 2, 3, 4), [0.3, 0.6, 0.9])
    names = []

    def backend(graph, example_inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]

    def forward(*inputs):
        return op.turn_on(*inputs, v_threshold=0.5, surrogate_function=Rect())

    torch.compile(forward, fullgraph=True, backend=backend)(*inputs)
    assert sum("turn_on_forward" in name for name in names) == 1
    outputs = torch.compile(forward, fullgraph=True)(*inputs)
    gradients = torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs)
    assert torch.equal(outputs[0], forward(*inputs)[0])
    reference.assert_gradients(gradients, case, False)


def test_exports(reference):
    class Spikes(torch.nn.Module):
        def forward(self, x_seq, decay):
            return op.turn_on(x_seq, None, decay, v_threshold=0.5, surrogate_function=Rect())[0]

    case = reference.random_case((5, 2, 6), [0.3])
    inputs = case["x_seq"], case["decay"]
    exported = torch.export.export(Spikes(), inputs)
    assert torch.equal(exported.module()(*inputs), Spikes()(*inputs))


def test_double_backward_says_that_it_is_not_there(reference):
    (spike, *_), inputs = run(reference.random_case((3, 2, 5), [0.5]))
    (grad,) = torch.autograd.grad(spike.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        grad.sum().backward()


def test_a_second_backward_raises(reference):
    (spike, *_), _ = run(reference.random_case((3, 2, 5), [0.5]))
    spike.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        spike.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_dtypes_that_the_kernel_does_not_take(reference, dtype):
    case = reference.random_case((3, 2, 5), [0.5])
    case["x_seq"] = case["x_seq"].to(dtype)
    with pytest.raises(TypeError, match=f"x_seq must be of one of.*got {dtype}"):
        run(case)


def test_surrogates_that_the_kernel_does_not_take(reference):
    case = reference.random_case((3, 2, 5), [0.5])
    smooth = Rect()
    smooth.set_spiking_mode(False)
    for surrogate_function in (smooth, torch.sigmoid):
        with pytest.raises(
            TypeError, match="surrogate_function must be Rect or ClosedRect, or emit CUDA code"
        ):
            run(case, surrogate_function)
    with pytest.raises(RuntimeError, match="learnable"):
        run(case, DSpike(learnable=True))


def test_too_many_neurons_for_the_kernel_to_count():
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 elements per step, got 2147483648"):
        cuda_launch.Variant.of(torch.float32, 2**31)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("length", [0, 3])
def test_a_cpu_tensor_on_the_cupy_backend(step_mode, length):
    node = TurnOnNode(step_mode=step_mode)
    node._backend = "cupy"
    with pytest.raises(RuntimeError, match="backend='cupy' of TurnOnNode runs on a CUDA device"):
        node(torch.randn(length, 2))


def test_the_cupy_backend_without_cupy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="needs CuPy, which is not installed"):
        TurnOnNode(backend="cupy")
    node = TurnOnNode()
    with pytest.raises(RuntimeError, match="needs CuPy"):
        node.backend = "cupy"
    assert node.backend == "torch"


def test_a_launch_without_cupy_says_so(monkeypatch):
    real_import = builtins.__import__

    def no_cupy(name, *args, **kwargs):
        if name == "cupy":
            raise ImportError("no CuPy here")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_cupy)
    cuda._cupy.cache_clear()
    variant = cuda_launch.Variant.of(torch.float32, 8)
    with pytest.raises(RuntimeError, match="needs CuPy, which cannot be imported"):
        cuda_launch.launch(variant, "turn_on_forward", 1, torch.device("cuda", 0))


def test_the_node_on_the_operator(reference, monkeypatch):
    """Everything of the cupy backend but the device: the operator's CPU twin stands in for it."""
    monkeypatch.setattr(TurnOnNode, "check_backend", lambda node, x: None)
    x = torch.randn(6, 2, 3, 4, requires_grad=True)
    for arguments in ({}, {"decay": [0.4, -0.6, 0.9], "decay_shape": "channel"}):
        node, twin = (TurnOnNode(step_mode="m", store_v_seq=True, **arguments) for _ in range(2))
        node._backend = "cupy"
        for _ in range(2):  # from 0, and from the potential that the first run left
            spike, expected = node(x), twin(x)
            assert torch.equal(spike, expected)
            assert torch.equal(node.v, twin.v) and torch.equal(node.v_seq, twin.v_seq)
            assert not node.v._is_view()
            weights = torch.randn_like(x)
            got = torch.autograd.grad((spike * weights).sum(), (x, node.decay))
            want = torch.autograd.grad((expected * weights).sum(), (x, twin.decay))
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            node.detach()
            twin.detach()
        node.step_mode = twin.step_mode = "s"
        assert torch.equal(node(x[0]), twin(x[0]))
        node.reset()
        assert node.v == 0.0
