"""Window: what a rectangular surrogate's backward pass is, with one bit per element."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext import host
from sj_ext.ops import windows
from sj_ext.ops.bits import unpack_bits
from sj_ext.ops.windows import Window
from sj_ext.surrogate import ClosedRect, DSpike, Rect

shapes = st.lists(st.integers(0, 7), min_size=0, max_size=4).map(tuple)
#: multiples of an eighth: exact, and often at the end of a window
eighths = st.integers(-12, 12).map(lambda x: x / 8)


@given(
    shape=shapes,
    alpha=st.sampled_from([0.5, 1.0, 2.0, 0.7]),
    closed=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_it_is_the_surrogates_backward_pass(shape, alpha, closed, seed):
    generator = torch.Generator().manual_seed(seed)
    above = (torch.randint(-12, 13, shape, generator=generator) / 8).double().requires_grad_()
    function = (ClosedRect if closed else Rect)(alpha)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(function(above), above, grad)
    window = Window.of(function)
    assert window == (alpha, closed)
    packed = window.pack(above.detach())
    assert packed.numel() == (above.numel() + 7) // 8
    before = grad.clone()
    assert torch.equal(window.apply(packed, grad), wanted)
    out = torch.full_like(grad, math.nan)
    assert window.apply(packed, grad, out=out) is out and torch.equal(out, wanted)
    assert torch.equal(grad, before)


@given(values=st.lists(eighths, min_size=1, max_size=30), closed=st.booleans())
def test_the_ends_are_inside_a_closed_window_only(values, closed):
    above = torch.tensor(values)
    wanted = [abs(x) <= 0.5 if closed else abs(x) < 0.5 for x in values]
    window = Window(1.0, closed)
    assert window.inside(above).tolist() == wanted
    assert unpack_bits(window.pack(above), above.shape).tolist() == wanted


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("at_a_time", [1, 50, 2**17])
def test_layouts_and_pieces(monkeypatch, closed, at_a_time):
    monkeypatch.setattr(windows, "_AT_A_TIME", at_a_time)
    image = (torch.randint(-8, 9, (3, 4, 5, 6)) / 8).to(memory_format=torch.channels_last)
    window = Window(1.0, closed)
    for above in (image, image[..., ::2], image[:, 1:3], image[0], image.flatten()[3:]):
        inside = window.inside(above)
        assert torch.equal(inside, above.abs() <= 0.5 if closed else above.abs() < 0.5)
        assert torch.equal(unpack_bits(window.pack(above), above.shape), inside)
    assert window.inside(image).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("closed", [False, True])
def test_what_is_no_number_is_outside(closed):
    above = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    assert Window(1.0, closed).inside(above).tolist() == [False, False, False, True]


@pytest.mark.parametrize("closed", [False, True])
def test_compiles_into_one_graph(closed):
    window = Window(2.0, closed)

    def there_and_back(above, grad):
        return window.apply(window.pack(above), grad)

    above, grad = torch.randint(-8, 9, (3, 50)) / 8, torch.randn(3, 50)
    compiled = torch.compile(there_and_back, fullgraph=True)(above, grad)
    assert torch.equal(compiled, there_and_back(above, grad))


def test_other_surrogates_are_no_window():
    class Mine(ClosedRect):
        """A subclass may have another gradient."""

    primitive = copy.deepcopy(ClosedRect())
    primitive.set_spiking_mode(False)
    for function in (DSpike(), host.surrogate.Sigmoid(), Mine(), primitive, torch.sign):
        assert Window.of(function) is None
    assert Window.of(Rect(3.0)) == Window(3.0, closed=False)
    assert Window.of(ClosedRect(3.0)) == Window(3.0, closed=True)
