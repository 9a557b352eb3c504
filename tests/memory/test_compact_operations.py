"""How often a compact network applies its weights, counted where PyTorch runs them."""

import pytest
import torch
from benchmarks.lib.flops import Flops
from compact_nets import Membrane, images, sew_resnet18, smooth, window
from spikingjelly.activation_based import functional

from sj_ext.memory import compact


def operations(net, x):
    functional.reset_net(net)
    with Flops() as counted:
        net(x).sum().backward()
    return counted.total


@pytest.mark.parametrize(("slices", "most"), [(1, 1.35), (2, 2.05)])
def test_a_residual_network_of_the_host(slices, most):
    net, x = sew_resnet18(), torch.rand(1, 2, 3, 32, 32)
    plain = operations(net, x)
    assert 1.2 * plain < operations(compact(net, x, slices=slices), x) <= most * plain


@pytest.mark.parametrize("slices", [1, 2])
def test_no_weights_are_applied_again_where_inputs_are_kept(slices):
    net, x = sew_resnet18(), torch.rand(1, 2, 3, 32, 32)
    plain = operations(net, x)
    assert operations(compact(net, x, slices=slices, keep="inputs"), x) == plain


@pytest.mark.parametrize("node", [window, smooth])
def test_a_stem_that_is_made_again_for_every_slice(node):
    """On a single step of a still image; what it leads into is undone once more as well."""
    net = Membrane(node, widths=(16, 16), blocks=3, stem_stride=2)
    x = images(1, 2, 16, torch.float32).expand(4, -1, -1, -1, -1)
    plain = operations(net, x)
    assert operations(compact(net, x), x) <= 1.36 * plain
    assert operations(compact(net, x, slices=2), x) <= 2.1 * plain
    assert operations(compact(net, x, keep="inputs"), x) == plain
    assert operations(compact(net, x, slices=2, keep="inputs"), x) <= 1.05 * plain
