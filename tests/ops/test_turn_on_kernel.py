"""kernel.cu without a GPU: it compiles for every card, and run on the host it is the naive twin.

The host run goes through the operator's CUDA implementation, with the launch alone replaced.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from nvrtc import ARCHITECTURES, compile_for

from sj_ext import host
from sj_ext.ops import cuda
from sj_ext.ops.turn_on import launch as cuda_launch
from sj_ext.ops.turn_on import naive, op
from sj_ext.ops.turn_on.launch import DTYPES, Variant
from sj_ext.surrogate import DSpike, Rect

SPIKE_CODE = DSpike().cuda_codes("window", "above", "float")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("block", [64, 256])
def test_every_variant_compiles_to_machine_code(architecture, dtype, aligned, block):
    forms = [("", False), ("", True), (SPIKE_CODE, False)]
    for code, closed in forms if block == 256 else forms[:1]:
        variant = Variant(dtype, aligned, block, code, closed)
        options = (*cuda_launch.program(variant).options, "--ptxas-options=-v")
        machine_code, report = compile_for(architecture, cuda_launch.source(variant), *options)
        assert machine_code.startswith(b"\x7fELF")
        for name in (b"turn_on_forward", b"turn_on_backward"):
            assert name in machine_code
        assert report.count("registers") == 2
        # no array went to local memory, no register was spilled
        assert report.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 2


@pytest.fixture
def on_host(monkeypatch, host_launch):
    """The operator's CUDA implementation on CPU tensors; what it leaves unwritten is NaN."""
    monkeypatch.setattr(op, "launch", host_launch)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(case, *, store_v_seq=False, code="", v_init=True, learns=True, v_learns=True):
    """Outputs, and gradients of the weighted sum, of the CUDA implementation."""
    decay = case["decay"].reshape(-1)
    inner = case["x_seq"].shape[case["x_seq"].dim() - case["decay"].dim() + 1 :].numel()
    inner = inner if decay.numel() > 1 else 1
    start = case["v_init"] if v_init else None
    constants = inner, case["v_threshold"], case["alpha"], case.get("closed", False), code
    spike, v_last, bits, v_seq = op._forward_cuda(
        case["x_seq"], start, decay, *constants, True, store_v_seq
    )
    by_spike, by_v_seq, by_v_last = case["weights"]
    grad_x, grad_v, grad_decay = op._backward_cuda(
        by_spike,
        by_v_last,
        by_v_seq if store_v_seq else None,
        bits,
        case["x_seq"] if learns or code else None,
        start if learns or code else None,
        decay,
        *constants,
        learns,
        v_learns,
    )
    if learns:
        grad_decay = grad_decay.view(case["decay"].shape)
    return (spike, v_last, v_seq if store_v_seq else None), (grad_x, grad_v, grad_decay)


def assert_spikes(outputs, case):
    spike, v_seq = naive.turn_on(
        *(case[name] for name in ("x_seq", "v_init", "decay")), case["v_threshold"], Rect()
    )
    assert torch.equal(outputs[0], spike)
    assert torch.equal(outputs[1], v_seq[-1])
    assert outputs[2] is None or torch.equal(outputs[2], v_seq)


COLUMNS = [(1, 1), (3, 7), (2, 4, 4), (2, 3, 8), (3, 4, 173), (5, 4, 64)]


def rounding(steps: int) -> float:
    """Every step of a float32 sum rounds by up to 2^-24 of the sizes of its terms."""
    return max(1e-6, steps * 2**-24)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 17, 64])
@pytest.mark.parametrize("columns", COLUMNS, ids=str)
def test_on_the_host_it_is_the_twin(on_host, reference, dtype, steps, columns):
    for per_channel in (False, True):
        decays = (torch.rand(columns[1]) * 1.2 * torch.randn(columns[1]).sign()).tolist()
        case = reference.random_case(
            (steps, *columns), decays if per_channel else decays[:1], dtype=dtype, alpha=0.8
        )
        for store_v_seq in (False, True):
            outputs, gradients = run(case, store_v_seq=store_v_seq)
            assert_spikes(outputs, case)
            reference.assert_gradients(gradients, case, store_v_seq, rtol=rounding(steps))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [(3, 7), (2, 4, 8)], ids=str)
@pytest.mark.parametrize("closed", [False, True])
def test_at_the_threshold_and_at_the_windows_edges(on_host, reference, dtype, columns, closed):
    case = reference.random_case((4, *columns), [0.5], dtype=dtype, v_init=False)
    case["closed"] = closed
    # multiples of 1/4, halved a few times at most: exact, and often on 0, 1/2 or 1
    case["x_seq"] = (torch.randint(-4, 5, (4, *columns)) / 4).to(dtype)
    # the first potentials are the inputs: one is at the threshold, one at an edge
    case["x_seq"][0].view(-1)[:2] = torch.tensor([0.0, -0.5]) + case["v_threshold"]
    outputs, gradients = run(case, store_v_seq=True)
    above = outputs[2] - case["v_threshold"]
    assert (above == 0).any() and (above.abs() == 0.5).any()
    assert_spikes(outputs, case)
    reference.assert_gradients(gradients, case, True, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [(2, 5), (2, 4, 8)], ids=str)
def test_without_an_initial_potential_it_starts_from_0(on_host, reference, dtype, columns):
    case = reference.random_case((5, *columns), [-0.7], dtype=dtype, v_init=False)
    outputs, gradients = run(case, v_init=False)
    assert_spikes(outputs, case)
    reference.assert_gradients(gradients, case, False, rtol=1e-6)


@pytest.mark.parametrize("columns", [(3, 7), (2, 4, 8)], ids=str)
@pytest.mark.parametrize("start", [False, True])
def test_a_fixed_decay_needs_neither_x_nor_the_initial_potential(
    on_host, reference, columns, start
):
    case = reference.random_case((6, *columns), [0.9], v_init=start)
    _, gradients = run(case, learns=False, v_init=start)
    _, expected = run(case, learns=True, v_init=start)
    assert torch.equal(gradients[0], expected[0]) and torch.equal(gradients[1], expected[1])
    assert gradients[2].numel() == 0


def test_gradients_that_are_not_there_count_as_0(on_host, reference):
    case = reference.random_case((6, 3, 7), [0.9])
    by_spike, by_v_seq, by_v_last = case["weights"]
    _, expected = run({**case, "weights": [by_spike, by_v_seq, torch.zeros_like(by_v_last)]})
    _, gradients = run({**case, "weights": [by_spike, by_v_seq, None]}, v_learns=False)
    assert torch.equal(gradients[0], expected[0]) and torch.equal(gradients[2], expected[2])
    assert gradients[1].numel() == 0


@pytest.mark.parametrize("decay", [1e-3, -1e-3, 1.2, -1.2])
def test_the_extremes_of_the_decay(on_host, reference, decay):
    case = reference.random_case((64, 3, 20), [decay])
    outputs, gradients = run(case)
    assert_spikes(outputs, case)
    reference.assert_gradients(gradients, case, False, rtol=rounding(64))


@pytest.mark.parametrize("columns", [(1, 520), (4, 4096), (3, 683)], ids=str)
def test_large_blocks_give_the_same(monkeypatch, on_host, reference, columns):
    case = reference.random_case((3, *columns), [0.6])
    outputs, gradients = run(case)
    of = Variant.of
    monkeypatch.setattr(
        Variant, "of", classmethod(lambda cls, *args: of(*args)._replace(block=256))
    )
    again, same = run(case)
    for one, other in zip([*outputs, *gradients[:2]], [*again, *same[:2]], strict=True):
        assert one is other is None or torch.equal(one, other)
    torch.testing.assert_close(gradients[2], same[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 8, 9, 30])
@pytest.mark.parametrize("columns", [(2, 3), (3, 4, 8)], ids=str)
def test_other_surrogates_recompute_the_potentials(on_host, reference, dtype, steps, columns):
    surrogate_function = DSpike()
    decays = torch.rand(columns[1]).tolist()
    case = reference.random_case((steps, *columns), decays, dtype=dtype)
    outputs, gradients = run(case, store_v_seq=True, code=SPIKE_CODE)
    assert_spikes(outputs, case)
    inputs = [case[name].double().requires_grad_() for name in ("x_seq", "v_init", "decay")]
    spike, v_seq = naive.turn_on(*inputs, 0.5, surrogate_function)
    expected = torch.autograd.grad(
        reference.loss((spike, v_seq[-1], v_seq), case["weights"]), inputs
    )
    tolerance = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-5 * steps)


@pytest.mark.parametrize("name", ["Sigmoid", "ATan"])
def test_the_hosts_surrogates_where_they_emit_code(on_host, reference, name):
    surrogate_function = getattr(host.surrogate, name)()
    if host.GENERATION == 2:  # they emit none there
        with pytest.raises(
            TypeError, match=f"must be Rect or ClosedRect, or emit CUDA code.*{name}"
        ):
            op._surrogate(surrogate_function)
        return
    _, code = op._surrogate(surrogate_function)
    case = reference.random_case((11, 2, 8), [0.8])
    _, gradients = run(case, code=code)
    inputs = [case[key].double().requires_grad_() for key in ("x_seq", "v_init", "decay")]
    spike, v_seq = naive.turn_on(*inputs, 0.5, surrogate_function)
    expected = torch.autograd.grad(
        reference.loss((spike, v_seq[-1], None), case["weights"]), inputs
    )
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


def test_the_decays_gradient_is_the_same_in_every_run(on_host, reference):
    case = reference.random_case((4, 3, 1111), [0.7])
    first = run(case)[1][2]
    assert all(torch.equal(run(case)[1][2], first) for _ in range(3))


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 2, 0), (0, 2, 3)])
def test_nothing_is_launched_for_nothing(monkeypatch, reference, shape):
    def refuse(*arguments):
        raise AssertionError("launched")

    monkeypatch.setattr(op, "launch", refuse)
    case = reference.random_case(shape, [0.7])
    outputs, gradients = run(case)
    assert outputs[0].shape == gradients[0].shape == shape
    assert gradients[2].item() == 0


@pytest.mark.parametrize("shape", [(3, 2, 4, 6), (2, 3, 8)])
def test_views_and_addresses_off_the_grid(on_host, reference, shape):
    case = reference.random_case(shape, [0.7])
    outputs, gradients = run(case)
    numel = case["x_seq"].numel()
    shifted = torch.empty(numel + 1)[1:].view(shape).copy_(case["x_seq"])
    assert shifted.data_ptr() % 16
    permuted = case["x_seq"].transpose(0, -1).contiguous().transpose(0, -1)
    for x_seq in (shifted, permuted):
        again, same = run({**case, "x_seq": x_seq})
        assert torch.equal(again[0], outputs[0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


@pytest.mark.parametrize("cupy_14", [True, False])
def test_the_launch_hands_cupy_what_the_kernel_takes(monkeypatch, reference, host_kernel, cupy_14):
    """All of ``launch`` but the card: a CuPy that compiles for the host instead."""
    entered = []

    class Context:
        def __init__(self, *what):
            self.what = what

        def __enter__(self):
            entered.append(self.what)

        def __exit__(self, *error):
            entered.append("left")

    class RawModule:
        def __init__(self, code, options, backend):
            assert backend == "nvrtc"
            self.code, self.options = code, options

        def get_function(self, name):
            run = host_kernel(self.code, self.options, name)

            def kernel(grid, block, arguments):
                assert len(grid) == 1 and f"-DBLOCK={block[0]}" in self.options
                assert entered[-1] == ("stream", 1234)  # launched inside PyTorch's stream
                run(grid[0], arguments)

            return kernel

    stream = SimpleNamespace(cuda_stream=1234, __cuda_stream__=lambda: (0, 1234))
    streams = SimpleNamespace()
    if cupy_14:
        streams.from_external = lambda stream: Context("stream", stream.cuda_stream)
    namespace = SimpleNamespace(
        Stream=streams,
        ExternalStream=lambda address, device: Context("stream", address),
        Device=lambda index: Context("device", index),
    )
    monkeypatch.setattr(cuda, "_cupy", lambda: SimpleNamespace(RawModule=RawModule, cuda=namespace))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    cuda._kernel.cache_clear()
    case = reference.random_case((5, 3, 4, 7), [0.3, -0.5, 0.7, 1.1])
    outputs, gradients = run(case)
    cuda._kernel.cache_clear()
    assert_spikes(outputs, case)
    reference.assert_gradients(gradients, case, False, rtol=1e-6)
    assert entered[0] == ("device", None) and entered.count("left") == len(entered) // 2


def test_a_kernel_that_does_not_compile_says_so_and_is_tried_again(
    monkeypatch, reference, host_kernel
):
    """The compiler's own error is the cause; nothing of the failure is kept."""

    class CompileException(Exception):
        pass

    class RawModule:
        works = False

        def __init__(self, code, options, backend):
            self.code, self.options = code, options

        def get_function(self, name):
            if not self.works:
                raise CompileException("nvrtc: error: invalid value for --gpu-architecture\n-arch")
            run = host_kernel(self.code, self.options, name)
            return lambda grid, block, arguments: run(grid[0], arguments)

    cupy = SimpleNamespace(
        RawModule=RawModule,
        __version__="14.0",
        cuda=SimpleNamespace(
            Stream=SimpleNamespace(),
            ExternalStream=lambda address, device: nullcontext(),
            Device=lambda index: nullcontext(),
        ),
    )
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(cuda, "_cupy", lambda: cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    cuda._kernel.cache_clear()
    case = reference.random_case((5, 3, 4, 7), [0.3, -0.5, 0.7, 1.1])
    before = {name: x.clone() for name, x in case.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(
        RuntimeError,
        match=r"CuPy 14\.0 could not compile .* \(CompileException: nvrtc: error: invalid value",
    ) as caught:
        run(case)
    assert isinstance(caught.value.__cause__, CompileException)
    assert all(torch.equal(case[name], x) for name, x in before.items())
    RawModule.works = True
    outputs, gradients = run(case)
    cuda._kernel.cache_clear()
    assert_spikes(outputs, case)
    reference.assert_gradients(gradients, case, False, rtol=1e-6)
