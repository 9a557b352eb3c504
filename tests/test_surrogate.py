"""Surrogates: a step forwards, the derivative of their primitive function backwards."""

import copy
import ctypes
import subprocess

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext import host
from sj_ext.surrogate import ClosedRect, DSpike, Rect

#: at the edge of a window a derivative is a matter of definition; keep away from it
inputs = st.lists(
    st.floats(-2, 2).filter(lambda x: abs(abs(x) - 0.5) > 1e-6 and abs(abs(x) - 0.25) > 1e-6),
    min_size=1,
    max_size=20,
)


@given(
    inputs,
    st.sampled_from([Rect(), Rect(2.0), ClosedRect(2.0), DSpike(), DSpike(0.2), DSpike(9.0)]),
)
def test_backward_is_the_derivative_of_the_primitive(values, function):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    function.set_spiking_mode(True)
    y = function(x)
    assert torch.equal(y, (x >= 0).to(x))
    weights = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    function.set_spiking_mode(False)
    (want,) = torch.autograd.grad((function(x) * weights).sum(), x)
    torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-12)


def test_rect_is_the_hosts_own_where_it_has_one():
    assert (Rect is getattr(host.surrogate, "Rect", None)) or host.GENERATION == 1
    assert isinstance(Rect(), host.surrogate.SurrogateFunctionBase)


def test_rect_window_is_open_at_its_edges():
    x = torch.tensor([-0.5, -0.25, 0.0, 0.49, 0.5], requires_grad=True)
    Rect()(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [0.25, 1.0, 4.0])
def test_the_closed_window_has_its_ends_inside(dtype, alpha):
    end = torch.tensor([0.5 / alpha], dtype=dtype)
    outside, inside = (torch.nextafter(end, end.new_full((1,), x)) for x in (torch.inf, 0.0))
    x = torch.cat([-outside, -end, -inside, inside, end, outside]).requires_grad_()
    y = ClosedRect(alpha)(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x.grad.tolist() == [0, alpha, alpha, alpha, alpha, 0]


@given(inputs, st.floats(0.05, 12.0))
def test_learnable_temperature_gets_the_derivative_of_the_primitive(values, temperature):
    x = torch.tensor(values, dtype=torch.float64)
    function = DSpike(temperature, learnable=True).double()
    weights = torch.randn_like(x)
    (function(x) * weights).sum().backward()
    got, function.alpha.grad = function.alpha.grad, None
    function.set_spiking_mode(False)
    (function(x) * weights).sum().backward()
    torch.testing.assert_close(got, function.alpha.grad, rtol=1e-6, atol=1e-9)


def test_learnable_temperature_trains_inside_a_neuron():
    node = host.neuron.LIFNode(surrogate_function=DSpike(learnable=True), step_mode="m")
    optimizer = torch.optim.SGD(node.parameters(), lr=0.1)
    x = torch.randn(4, 8, 6) * 2
    node(x).square().mean().backward()
    before = node.surrogate_function.alpha.item()
    optimizer.step()
    assert node.surrogate_function.alpha.item() != before
    assert "surrogate_function.alpha" in node.state_dict()


def test_dspike_at_both_ends_of_its_temperature():
    x = torch.linspace(-0.45, 0.45, 19, requires_grad=True)
    DSpike(1e-3)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x), rtol=0, atol=1e-4)  # rectangular
    x.grad = None
    DSpike(50.0)(x).sum().backward()
    assert x.grad[9] == pytest.approx(25.0, rel=1e-3)  # a peak of height b / 2
    assert x.grad[0] < 1e-3


def test_surrogates_copy_and_take_half_precision():
    for function in (Rect(), ClosedRect(), DSpike(), DSpike(learnable=True)):
        twin = copy.deepcopy(function)
        x = torch.randn(7, dtype=torch.bfloat16, requires_grad=True)
        twin(x).sum().backward()
        assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_or_temperature_must_be_above_zero(value):
    with pytest.raises(ValueError, match="temperature"):
        DSpike(value)
    if host.GENERATION == 1:
        with pytest.raises(ValueError, match="alpha"):
            Rect(value)
    with pytest.raises(ValueError, match="alpha"):
        ClosedRect(value)


def test_a_width_or_temperature_must_be_a_number():
    for value in ("2", None, True):
        with pytest.raises(TypeError, match="temperature must be a number above 0"):
            DSpike(value)


EMITTERS = [ClosedRect(), ClosedRect(3.0), DSpike(), DSpike(7.0)] + (
    [Rect(), Rect(3.0)] if host.GENERATION == 1 else []
)


@pytest.mark.parametrize("function", EMITTERS, ids=repr)
def test_emitted_code_computes_the_gradient(function, tmp_path):
    """The float code, compiled as C++, against the gradient in float64."""
    source = tmp_path / "window.cpp"
    source.write_text(
        '#include <math.h>\nextern "C" void window(const float* x, float* g, int n)'
        "{ for (int i = 0; i < n; ++i) { const float over_th = x[i]; "
        f"{function.cuda_codes('const float new_style', 'over_th', 'float')}"
        f"{function.cuda_code('over_th', 'old_style')}"
        "g[i] = new_style == old_style ? new_style : NAN; } }"
    )
    library = tmp_path / "window.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    x = torch.cat([torch.randn(1000), torch.tensor([-0.5, 0.5])]).numpy()
    got = numpy.empty_like(x)
    pointers = [a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for a in (x, got)]
    ctypes.CDLL(str(library)).window(*pointers, len(x))
    wide = torch.from_numpy(x).double().requires_grad_()
    function(wide).sum().backward()
    torch.testing.assert_close(torch.from_numpy(got).double(), wide.grad, rtol=1e-5, atol=1e-6)


def test_emitted_half2_code_names_half2_operations_only():
    for function in EMITTERS:
        code = function.cuda_codes("const half2 g", "over_th", "half2")
        assert code == function.cuda_code("over_th", "g", "fp16").strip()
        compare = "__hle2" if isinstance(function, ClosedRect) else "__hlt2"
        assert f"{compare}(__habs2(over_th)" in code and "fabsf" not in code
        with pytest.raises(ValueError, match="dtype"):
            function.cuda_codes("g", "x", "double")
        with pytest.raises(ValueError, match="dtype"):
            function.cuda_code("x", "g", "float")


def test_a_learnable_temperature_cannot_be_compiled_in():
    with pytest.raises(RuntimeError, match="temperature"):
        DSpike(learnable=True).cuda_codes("g", "x", "float")
