"""The turn-on neuron's sequence on torch: the twin's spikes, float64 autograd's gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.ops.turn_on import naive, sequence
from sj_ext.ops.turn_on.sequence import away_from_zero, turn_on
from sj_ext.surrogate import ClosedRect, DSpike, Rect

DECAYS = st.floats(1e-3, 1.2).flatmap(lambda size: st.sampled_from([size, -size]))


@st.composite
def cases(draw):
    """Float32 inputs: x [T, N, C, *], v, decay (one or per channel), threshold, alpha, weights."""
    steps = draw(st.integers(1, 64))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    per_channel = len(shape) > 1 and draw(st.booleans())
    decays = [draw(DECAYS) for _ in range(shape[1] if per_channel else 1)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    decay = torch.tensor(decays)
    return {
        "x_seq": torch.randn(steps, *shape, generator=generator) * 0.7,
        "v_init": torch.randn(shape, generator=generator) * draw(st.sampled_from([0.0, 1.0])),
        "decay": decay.view(-1, *[1] * (len(shape) - 2)) if per_channel else decay,
        "v_threshold": draw(st.sampled_from([0.5, 0.0, -0.3])),
        "alpha": draw(st.sampled_from([1.0, 0.3, 2.0])),
        "closed": draw(st.booleans()),
        "weights": [torch.randn(steps, *shape, generator=generator) for _ in range(2)]
        + [torch.randn(shape, generator=generator)],
    }


@given(case=cases(), store_v_seq=st.booleans())
def test_spikes_equal_the_twin_and_gradients_float64_autograd(reference, case, store_v_seq):
    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]
    surrogate_function = (ClosedRect if case["closed"] else Rect)(alpha=case["alpha"])
    outputs = turn_on(
        *inputs,
        v_threshold=case["v_threshold"],
        surrogate_function=surrogate_function,
        store_v_seq=store_v_seq,
    )
    spike, v_seq = naive.turn_on(*inputs, case["v_threshold"], surrogate_function)
    assert torch.equal(outputs[0], spike)
    assert torch.equal(outputs[1], v_seq[-1])
    assert (outputs[2] is not None) == store_v_seq
    if store_v_seq:
        assert torch.equal(outputs[2], v_seq)
    reference.assert_gradients(
        torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs), case, store_v_seq
    )


@pytest.mark.parametrize("closed", [False, True])
def test_potentials_on_the_ends_of_the_window(reference, closed):
    case = reference.random_case((4, 3, 40), [0.5], v_init=False)
    case["closed"], case["x_seq"] = closed, torch.randint(-4, 5, (4, 3, 40)) / 4
    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]
    function = ClosedRect() if closed else Rect()
    outputs = turn_on(*inputs, v_threshold=0.5, surrogate_function=function, store_v_seq=True)
    assert ((outputs[2] - 0.5).abs() == 0.5).any()
    gradients = torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs)
    reference.assert_gradients(gradients, case, True)


@pytest.mark.parametrize("block", [1024, 4096])
@pytest.mark.parametrize("channels", [None, 5])
def test_many_blocks_of_columns(monkeypatch, reference, block, channels):
    monkeypatch.setattr(sequence, "_CPU_BLOCK", block)
    shape = (3, 5, 211)
    case = {
        "x_seq": torch.randn(4, *shape),
        "v_init": torch.randn(shape),
        "decay": torch.tensor([0.7]) if channels is None else torch.rand(channels, 1) + 0.1,
        "v_threshold": 0.5,
        "alpha": 1.0,
        "weights": [torch.randn(4, *shape), torch.randn(4, *shape), torch.randn(shape)],
    }
    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]
    outputs = turn_on(*inputs, v_threshold=0.5, surrogate_function=Rect(), store_v_seq=True)
    assert torch.equal(outputs[0], naive.turn_on(*inputs, 0.5, Rect())[0])
    reference.assert_gradients(
        torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs), case, True
    )


def test_the_number_of_threads_may_change_between_forward_and_backward(monkeypatch):
    monkeypatch.setattr(sequence, "_CPU_BLOCK", 2048)
    x = torch.randn(2, 9000, requires_grad=True)
    decay = torch.tensor([0.5])
    spike, *_ = turn_on(x, torch.zeros(9000), decay, v_threshold=0.5, surrogate_function=Rect())
    monkeypatch.setattr(sequence, "_CPU_BLOCK", 4096)
    weights = torch.randn_like(x)
    (grad,) = torch.autograd.grad((spike * weights).sum(), x)
    expected, _ = naive.turn_on(x, torch.zeros(9000), decay, 0.5, Rect())
    (expected,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    "surrogate_function",
    [DSpike(), DSpike(learnable=True), host.surrogate.Sigmoid(), host.surrogate.ATan()],
    ids=str,
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_other_surrogates(reference, surrogate_function, per_channel):
    inputs = [
        torch.randn(6, 2, 3, 4, dtype=torch.float64),
        torch.randn(2, 3, 4, dtype=torch.float64),
        torch.rand(3, 1, dtype=torch.float64) if per_channel else torch.tensor([-0.8]).double(),
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    inputs += list(surrogate_function.parameters())
    weights = [torch.randn(6, 2, 3, 4), torch.randn(6, 2, 3, 4), torch.randn(2, 3, 4)]
    outputs = turn_on(
        *inputs[:3], v_threshold=0.2, surrogate_function=surrogate_function, store_v_seq=True
    )
    spike, v_seq = naive.turn_on(*inputs[:3], 0.2, surrogate_function)
    assert torch.equal(outputs[0], spike) and torch.equal(outputs[2], v_seq)
    gradients = torch.autograd.grad(reference.loss(outputs, weights), inputs)
    expected = torch.autograd.grad(reference.loss((spike, v_seq[-1], v_seq), weights), inputs)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_at_the_threshold_and_at_the_windows_edges(reference):
    case = reference.random_case((4, 3, 70), [0.5], v_init=False)
    # multiples of 1/4, halved a few times at most: exact, and often on 0, 1/2 or 1
    case["x_seq"] = torch.randint(-4, 5, (4, 3, 70)) / 4
    inputs = [case[name].clone().requires_grad_() for name in ("x_seq", "v_init", "decay")]
    outputs = turn_on(*inputs, v_threshold=0.5, surrogate_function=Rect(), store_v_seq=True)
    above = outputs[2] - 0.5
    assert (above == 0).any() and (above.abs() == 0.5).any()
    assert torch.equal(outputs[0], naive.turn_on(*inputs, 0.5, Rect())[0])
    gradients = torch.autograd.grad(reference.loss(outputs, case["weights"]), inputs)
    reference.assert_gradients(gradients, case, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_inputs_are_summed_in_float32(dtype):
    x = torch.randn(32, 50).to(dtype).requires_grad_()
    v, decay = torch.zeros(50), torch.tensor([0.9], requires_grad=True)
    spike, v_last, _ = turn_on(x, v, decay, v_threshold=0.5, surrogate_function=Rect())
    wide, v_wide = naive.turn_on(x.float(), v, decay, 0.5, Rect())
    assert spike.dtype == dtype and v_last.dtype == torch.float32
    assert torch.equal(spike.float(), wide) and torch.equal(v_last, v_wide[-1])
    weights = torch.randn(32, 50).to(dtype)
    grads = torch.autograd.grad((spike * weights).float().sum(), (x, decay))
    expected = torch.autograd.grad((wide * weights).sum(), (x, decay))
    assert grads[0].dtype == dtype
    torch.testing.assert_close(grads[0], expected[0].to(dtype))
    torch.testing.assert_close(grads[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learns", [False, True])
def test_what_is_kept_is_a_bit_per_element_and_x_if_the_decay_learns(learns):
    x = torch.randn(8, 4, 512, requires_grad=True)
    decay, v = torch.tensor([0.5], requires_grad=learns), torch.zeros(4, 512)
    outputs, memory = activation_memory(
        lambda: turn_on(x, v, decay, v_threshold=0.5, surrogate_function=Rect())
    )
    results = sum(tensor.numel() * 4 for tensor in outputs if tensor is not None)
    assert memory.saved == results + x.numel() // 8  # x itself was there before


def test_a_frozen_input_still_gives_the_decay_its_gradient():
    x, decay = torch.randn(5, 3, 4), torch.tensor([0.6], requires_grad=True)
    spike, *_ = turn_on(x, torch.ones(3, 4), decay, v_threshold=0.5, surrogate_function=Rect())
    (grad,) = torch.autograd.grad(spike.sum(), decay)
    (expected,) = torch.autograd.grad(
        naive.turn_on(x, torch.ones(3, 4), decay, 0.5, Rect())[0].sum(), decay
    )
    torch.testing.assert_close(grad, expected)


def test_layouts_do_not_matter():
    x = torch.randn(3, 2, 4, 6, 5)
    permuted = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    expanded = torch.randn(1, 2, 4, 6, 5).expand(3, -1, -1, -1, -1)
    for tensor in (permuted, expanded, x[..., ::2]):
        tensor = tensor.detach().requires_grad_()
        v, decay = torch.zeros(tensor.shape[1:]), torch.rand(4, 1, 1).requires_grad_()
        spike, *_ = turn_on(tensor, v, decay, v_threshold=0.5, surrogate_function=Rect())
        twin, _ = naive.turn_on(tensor, v, decay, 0.5, Rect())
        assert torch.equal(spike, twin)
        weights = torch.randn(tensor.shape)
        grads = torch.autograd.grad((spike * weights).sum(), (tensor, decay))
        expected = torch.autograd.grad((twin * weights).sum(), (tensor, decay))
        for got, want in zip(grads, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_inputs_are_not_written():
    tensors = [torch.randn(3, 4), torch.randn(4), torch.tensor([0.5])]
    before = [tensor.clone() for tensor in tensors]
    for requires_grad in (False, True):
        inputs = [tensor.requires_grad_(requires_grad) for tensor in tensors]
        spike, *_ = turn_on(*inputs, v_threshold=0.5, surrogate_function=Rect())
        if requires_grad:
            spike.sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    ("decay", "expected"),
    [(0.5, 0.5), (-0.5, -0.5), (1e-4, 1e-3), (-1e-4, -1e-3), (0.0, 1e-3), (1e-3, 1e-3)],
)
def test_away_from_zero_keeps_the_sign_and_passes_the_gradient(decay, expected):
    decay = torch.tensor([decay], requires_grad=True)
    moved = away_from_zero(decay, 1e-3)
    assert moved.item() == torch.tensor(expected).item()
    (moved * 3).sum().backward()
    assert decay.grad.item() == 3


@pytest.mark.parametrize("surrogate_function", [Rect(), host.surrogate.Sigmoid()], ids=str)
def test_double_backward_says_that_it_is_not_there(surrogate_function):
    x = torch.randn(3, 4, requires_grad=True)
    spike, *_ = turn_on(
        x,
        torch.zeros(4),
        torch.tensor([0.5]),
        v_threshold=0.5,
        surrogate_function=surrogate_function,
    )
    (grad,) = torch.autograd.grad(spike.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_second_backward_raises():
    x = torch.randn(3, 4, requires_grad=True)
    spike, *_ = turn_on(
        x, torch.zeros(4), torch.tensor([0.5]), v_threshold=0.5, surrogate_function=Rect()
    )
    spike.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        spike.sum().backward()


@pytest.mark.parametrize("surrogate_function", [ClosedRect(0.7), host.surrogate.Sigmoid()], ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_compiles_into_one_graph(reference, surrogate_function, per_channel):
    decay = torch.rand(3, 1) + 0.2 if per_channel else torch.tensor([0.6])
    inputs = [torch.randn(5, 2, 3, 7), torch.randn(2, 3, 7), decay]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def run(x, v, a):
        return turn_on(
            x, v, a, v_threshold=0.4, surrogate_function=surrogate_function, store_v_seq=True
        )

    torch._dynamo.reset()
    weights = [torch.randn(5, 2, 3, 7), torch.randn(5, 2, 3, 7), torch.randn(2, 3, 7)]
    outputs, expected = torch.compile(run, fullgraph=True)(*inputs), run(*inputs)
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, want)
    got = torch.autograd.grad(reference.loss(outputs, weights), inputs)
    for one, other in zip(
        got, torch.autograd.grad(reference.loss(expected, weights), inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
