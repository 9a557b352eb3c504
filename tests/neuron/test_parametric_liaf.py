"""The graded neuron of Spikeformer: its equations, beside the host's parametric LIF."""

import pytest
import torch

from sj_ext import host
from sj_ext.neuron import ParametricLIAFNode


def test_it_spikes_as_the_hosts_parametric_neuron_and_gives_its_potential():
    x_seq = 2 * torch.randn(6, 3, 5)
    ours = ParametricLIAFNode(init_tau=1.7, detach_reset=True, step_mode="m", store_v_seq=True)
    theirs = host.neuron.ParametricLIFNode(
        init_tau=1.7, detach_reset=True, step_mode="m", store_v_seq=True
    )
    y, spikes = ours(x_seq), theirs(x_seq)
    torch.testing.assert_close(ours.v_seq, theirs.v_seq)
    torch.testing.assert_close(y.detach() >= 1, spikes.detach() == 1)
    assert bool((y >= 0).all()) and bool((y > 1).any())


@pytest.mark.parametrize("v_reset", [0.0, 0.3, None])
def test_gradients_are_those_of_the_equations(v_reset):
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    node = ParametricLIAFNode(v_reset=v_reset, detach_reset=True, step_mode="m").double()
    node(x).square().sum().backward()
    x2, w = x.detach().requires_grad_(), node.w.detach().clone().requires_grad_()
    rest, v, total = v_reset or 0.0, torch.full_like(x2[0], v_reset or 0.0), 0.0
    for x_t in x2:
        h = v + (x_t - (v - rest)) * torch.sigmoid(w)
        s = (h >= 1).double()
        v = h - s if v_reset is None else (1 - s) * h + s * rest
        total = total + h.clamp(min=0).square().sum()
    total.backward()
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(node.w.grad, w.grad)


def test_bad_input():
    with pytest.raises(ValueError, match="init_tau must be"):
        ParametricLIAFNode(init_tau=1.0)
    with pytest.raises(TypeError, match="v_reset must be"):
        ParametricLIAFNode(v_reset="0")
