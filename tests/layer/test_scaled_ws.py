"""Scaled weight standardisation: the equation, its gradients, and what a call keeps."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.layer import ScaledWSConv2d


def reference(conv: ScaledWSConv2d, x, weight, gain, bias):
    """The equation in plain PyTorch on plain autograd."""
    fan_in = weight[0].numel()
    flat = weight.flatten(1)
    mean, var = flat.mean(1), flat.var(1, unbiased=False)
    shape = (-1, 1, 1, 1)
    effective = gain * (weight - mean.view(shape)) / (fan_in * var.view(shape) + conv.eps).sqrt()
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        return F.conv2d(x, effective, bias, conv.stride, 0, conv.dilation, conv.groups)
    return F.conv2d(x, effective, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 2),
    st.sampled_from([0, 1, "same"]),
    st.sampled_from(["zeros", "reflect"]),
    st.booleans(),
)
def test_output_and_gradients_follow_the_equation(groups, kernel, stride, padding, mode, bias):
    if padding == "same" and stride != 1:
        stride = 1
    conv = ScaledWSConv2d(
        8, 12, kernel, stride, padding, groups=groups, bias=bias, padding_mode=mode, gain_init=0.7
    ).double()
    torch.nn.init.normal_(conv.gain)
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64, requires_grad=True)
    leaves = [x, *conv.parameters()]
    ours = conv(x)
    theirs = reference(conv, x, conv.weight, conv.gain, conv.bias)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    for mine, wanted in zip(
        torch.autograd.grad(ours, leaves, grad),
        torch.autograd.grad(theirs, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


def test_unit_variance_in_gives_unit_variance_out():
    conv = ScaledWSConv2d(64, 256, 3, bias=False)
    out = conv(torch.randn(4, 64, 20, 20))
    assert out.var().item() == pytest.approx(1.0, rel=0.05)
    weight = conv.effective_weight()
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.zeros(256), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.square().sum((1, 2, 3)), torch.ones(256), atol=1e-4, rtol=0)


def test_a_call_keeps_its_input_only():
    conv = ScaledWSConv2d(256, 256, 3, padding=1)
    x = torch.randn(1, 256, 2, 2, requires_grad=True)
    y, memory = activation_memory(lambda: conv(x))
    assert memory.saved == y.numel() * 4  # no copy of the 2.4 MB weight
    assert memory.peak >= conv.weight.numel() * 4


def test_frozen_parts_get_no_gradient_and_the_rest_does():
    conv = ScaledWSConv2d(4, 4, 1)
    conv.weight.requires_grad_(False)
    x = torch.randn(2, 4, 3, 3)
    conv(x).sum().backward()
    assert conv.weight.grad is None
    assert conv.gain.grad is not None and conv.bias.grad is not None


def test_a_second_derivative_is_refused():
    conv = ScaledWSConv2d(2, 2, 1)
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_step_modes_agree():
    conv = ScaledWSConv2d(3, 5, 3, padding=1)
    x_seq = torch.randn(4, 2, 3, 6, 6)
    steps = torch.stack([conv(x) for x in x_seq])
    host.functional.set_step_mode(conv, "m")
    torch.testing.assert_close(conv(x_seq), steps)


def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients():
    conv = ScaledWSConv2d(16, 16, 3, padding=1)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype is torch.bfloat16
    y.float().square().sum().backward()
    grads = [p.grad.clone() for p in (x, *conv.parameters())]
    x.grad = None
    conv.zero_grad()
    conv(x).square().sum().backward()
    for low, full in zip(grads, (x, *conv.parameters()), strict=True):
        assert low.dtype is torch.float32
        assert (low - full.grad).norm() <= 2e-2 * full.grad.norm()


def test_compiled_equals_eager():
    conv = ScaledWSConv2d(4, 4, 3, padding=1)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    grads = []
    for module in (conv, torch.compile(conv, backend="aot_eager")):
        y = module(x)
        grads.append(torch.autograd.grad(y.square().sum(), [x, *conv.parameters()]))
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least 2 weights per output channel"):
        ScaledWSConv2d(4, 4, 1, groups=4)
    with pytest.raises(ValueError, match="eps must be above 0, got 0"):
        ScaledWSConv2d(4, 4, 3, eps=0)
    with pytest.raises(ValueError, match="eps_in must be one of .* got 'mean'"):
        ScaledWSConv2d(4, 4, 3, eps_in="mean")


def test_eps_may_be_added_to_the_variance():
    """As timm has it, with weights so small that it matters."""
    conv = ScaledWSConv2d(6, 5, 3, eps=1e-3, eps_in="variance").double()
    torch.nn.init.normal_(conv.weight, std=0.02)
    var, mean = torch.var_mean(conv.weight, (1, 2, 3), unbiased=False, keepdim=True)
    wanted = conv.gain * (conv.weight - mean) / (54 * (var + 1e-3)).sqrt()
    torch.testing.assert_close(conv.effective_weight(), wanted)
    conv.set_eps(1e-3)
    assert (conv.effective_weight() - wanted).norm() > 0.1 * wanted.norm()


def left_out(conv, x):
    """Row by row, the equation over the weights that are not zero."""
    rows = []
    for weight, gain in zip(conv.weight, conv.gain, strict=True):
        kept = (weight != 0).detach()
        some = weight[kept]
        centred = some - some.mean()
        row = torch.zeros_like(weight)
        rows.append(
            row.masked_scatter(kept, gain * centred / (centred.square().sum() + conv.eps).sqrt())
        )
    return F.conv2d(x, torch.stack(rows), conv.bias, padding=conv.padding)


def with_zeros():
    conv = ScaledWSConv2d(6, 5, 3, padding=1, eps=1e-4).double()
    torch.nn.init.normal_(conv.gain)
    zeros = torch.rand_like(conv.weight) < 0.6
    zeros[:, :2] = False  # something is left everywhere
    with torch.no_grad():
        conv.weight[zeros] = 0
        conv.weight[3, :, 1:] = 0
    conv.skip_zeros = True
    return conv, torch.randn(2, 6, 7, 7, dtype=torch.float64, requires_grad=True)


def test_zeros_stay_zero_and_do_not_count():
    conv, x = with_zeros()
    kept = conv.weight != 0
    assert torch.equal(conv.effective_weight() != 0, kept)
    ours, wanted = conv(x), left_out(conv, x)
    torch.testing.assert_close(ours, wanted)
    leaves, grad = [x, conv.gain, conv.bias, conv.weight], torch.randn_like(ours)
    got = torch.autograd.grad(ours, leaves, grad)
    want = torch.autograd.grad(wanted, leaves, grad)
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(got[3][kept], want[3][kept])
    # plain autograd through the weight takes the same way back, of zeros too
    effective = conv.effective_weight()
    plain = F.conv2d(x, effective, conv.bias, padding=1)
    (same,) = torch.autograd.grad(plain, [conv.weight], grad)
    torch.testing.assert_close(same, got[3])
    assert got[3][~kept].any()


def test_rows_with_nothing_left_are_silent_and_do_not_explode():
    conv, x = with_zeros()
    with torch.no_grad():
        conv.weight[0] = 0
        conv.weight[1] = 0
        conv.weight[1, 0, 0, 0] = 3.0
    assert not conv.effective_weight()[:2].any()
    conv(x).square().sum().backward()
    assert conv.weight.grad.isfinite().all() and not conv.weight.grad[:2].any()


def test_a_checkpoint_with_zeros_computes_the_same():
    conv, x = with_zeros()
    other = ScaledWSConv2d(6, 5, 3, padding=1, eps=1e-4).double()
    assert not other.skip_zeros and "skip_zeros" not in repr(other)
    other.load_state_dict(ScaledWSConv2d(6, 5, 3, padding=1).double().state_dict())
    assert not other.skip_zeros
    other.load_state_dict(conv.state_dict())
    assert other.skip_zeros and "skip_zeros=True" in repr(other)
    assert torch.equal(other(x), conv(x))
