"""The kernel on a card: the cases of the host run, and what only a device has.

``examples/benchmarks/gpu_report.py`` runs these together with the benchmark.
"""

import importlib.util

import pytest
import torch

from sj_ext.neuron import TurnOnNode, with_learnable_imp
from sj_ext.ops.turn_on import naive, op
from sj_ext.surrogate import DSpike, Rect

missing = [
    reason
    for absent, reason in (
        (not torch.cuda.is_available(), "no CUDA device"),
        (importlib.util.find_spec("cupy") is None, "no CuPy"),
    )
    if absent
]
pytestmark = pytest.mark.skipif(bool(missing), reason=" and ".join(missing))


def run(case, surrogate_function=None, store_v_seq=False):
    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]
    outputs = op.turn_on(
        *inputs,
        v_threshold=case["v_threshold"],
        surrogate_function=surrogate_function or Rect(alpha=case["alpha"]),
        store_v_seq=store_v_seq,
    )
    return outputs, inputs


def check(reference, case, store_v_seq=False, rtol=1e-5):
    outputs, inputs = run(case, store_v_seq=store_v_seq)
    spike, v_seq = naive.turn_on(*inputs, case["v_threshold"], Rect())
    assert torch.equal(outputs[0], spike) and torch.equal(outputs[1], v_seq[-1])
    gradients = torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs)
    reference.assert_gradients(gradients, case, store_v_seq, rtol)
    return outputs, gradients


@pytest.mark.parametrize("dtype", op.DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 17, 64])
@pytest.mark.parametrize(
    "columns", [(1, 1), (3, 7), (2, 4, 4), (3, 4, 173), (5, 4, 64), (4, 16, 32, 32)], ids=str
)
def test_it_is_the_twin(reference, dtype, steps, columns):
    decays = (torch.rand(columns[1]) * 1.2 * torch.randn(columns[1]).sign()).tolist()
    for chosen in (decays[:1], decays):
        case = reference.random_case((steps, *columns), chosen, dtype=dtype, device="cuda")
        for store_v_seq in (False, True):
            check(reference, case, store_v_seq)


@pytest.mark.parametrize("columns", [2**19, 2**21 + 4, 2**19 + 1])
def test_large_inputs(reference, columns):
    check(reference, reference.random_case((4, 1, columns), [0.6], device="cuda"))


@pytest.mark.parametrize("dtype", op.DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 8, 9, 30])
def test_other_surrogates(reference, dtype, steps):
    case = reference.random_case(
        (steps, 3, 4, 8), [0.3, -0.5, 0.7, 1.0], dtype=dtype, device="cuda"
    )
    outputs, inputs = run(case, DSpike(), store_v_seq=True)
    gradients = torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    spike, v_seq = naive.turn_on(*wide, 0.5, DSpike())
    expected = torch.autograd.grad(reference.loss((spike, v_seq[-1], v_seq), case["weights"]), wide)
    tolerance = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-5 * steps)


def test_the_decays_gradient_is_the_same_in_every_run(reference):
    case = reference.random_case((8, 4, 2**17), [0.7], device="cuda")
    first = check(reference, case)[1][2]
    assert all(torch.equal(check(reference, case)[1][2], first) for _ in range(3))


def test_a_stream_that_is_not_the_default(reference):
    case = reference.random_case((16, 8, 2**16), [0.7], device="cuda")
    expected, _ = run(case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):  # work that a launch on another stream would overtake
            case["x_seq"] = case["x_seq"] + 0
        outputs, inputs = run(case)
        (grad,) = torch.autograd.grad(outputs[0].sum(), inputs[0])
        total = grad.sum()
    stream.synchronize()
    assert torch.equal(outputs[0], expected[0])
    assert torch.isfinite(total)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_two_devices(reference):
    for index in (0, 1):
        check(reference, reference.random_case((5, 3, 64), [0.7], device=f"cuda:{index}"))


def test_views_and_addresses_off_the_grid(reference):
    case = reference.random_case((3, 2, 4, 8), [0.7], device="cuda")
    expected, _ = run(case)
    shifted = torch.empty(case["x_seq"].numel() + 1, device="cuda")[1:]
    shifted = shifted.view(case["x_seq"].shape).copy_(case["x_seq"])
    permuted = case["x_seq"].transpose(0, -1).contiguous().transpose(0, -1)
    for x_seq in (shifted, permuted):
        assert torch.equal(run({**case, "x_seq": x_seq})[0][0], expected[0])


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 2, 0), (0, 2, 3)])
def test_empty_inputs(shape):
    node = TurnOnNode(step_mode="m", backend="cupy").cuda()
    x = torch.randn(shape, device="cuda", requires_grad=True)
    spike = node(x)
    assert spike.shape == shape and spike.is_cuda
    (spike.sum() + 0 * x.sum()).backward()


def test_opcheck_on_the_device(reference):
    case = reference.random_case((3, 2, 4, 3), [0.5, -0.7, 0.9, 1.0], device="cuda")
    inputs = [case["x_seq"], case["v_init"], case["decay"].reshape(-1)]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    torch.library.opcheck(
        torch.ops.sj_ext.turn_on_forward_r2.default, (*inputs, 3, 0.5, 0.8, True, "", True, True)
    )


@pytest.mark.parametrize("node_class", [TurnOnNode, with_learnable_imp(TurnOnNode)])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_node_is_the_one_on_torch(node_class, step_mode):
    node = node_class(step_mode=step_mode, backend="cupy").cuda()
    x = torch.randn(6, 2, 3, 4, device="cuda", requires_grad=True)
    x_in = x if step_mode == "m" else x[0]
    node(x_in)
    twin = node_class(step_mode=step_mode).cuda()
    twin(x_in)
    twin.load_state_dict(node.state_dict())
    for module in (node, twin):
        module.reset()
    spike, expected = node(x_in), twin(x_in)
    assert torch.equal(spike, expected) and torch.equal(node.v, twin.v)
    got = torch.autograd.grad(spike.sum(), (x, *node.parameters()))
    want = torch.autograd.grad(expected.sum(), (x, *twin.parameters()))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_compiles_into_one_graph(reference):
    torch._dynamo.reset()
    case = reference.random_case((5, 2, 3, 4), [0.3, 0.6, 0.9], device="cuda")
    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]

    def forward(*inputs):
        return op.turn_on(*inputs, v_threshold=0.5, surrogate_function=Rect())

    outputs = torch.compile(forward, fullgraph=True)(*inputs)
    gradients = torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs)
    assert torch.equal(outputs[0], forward(*inputs)[0])
    reference.assert_gradients(gradients, case, False)


def test_a_cuda_graph_replays():
    x = torch.randn(8, 4, 1024, device="cuda", requires_grad=True)
    decay = torch.tensor([0.6], device="cuda", requires_grad=True)

    def step():
        spike, *_ = op.turn_on(x, None, decay, v_threshold=0.5, surrogate_function=Rect())
        return spike, *torch.autograd.grad(spike.sum(), (x, decay))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, step(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 8), TurnOnNode(step_mode="m", backend="cupy"), torch.nn.Linear(8, 3)
    ).cuda()
    with torch.autocast("cuda", dtype=dtype):
        spike = net[1](net[0](torch.randn(4, 5, 6, device="cuda")))
        assert spike.dtype == dtype
        net[2](spike).float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_dtypes_that_the_kernel_does_not_take():
    with pytest.raises(TypeError, match=r"got torch\.float64"):
        TurnOnNode(step_mode="m", backend="cupy").cuda()(
            torch.randn(2, 3, device="cuda", dtype=torch.float64)
        )
