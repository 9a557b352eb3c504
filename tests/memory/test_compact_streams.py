"""Residual blocks around a stream of floats are one function that keeps bits."""

import pytest
import torch
from compact_nets import Membrane, distance, images, smooth, step, twin, window
from spikingjelly.activation_based import functional

from sj_ext.analysis import activation_memory
from sj_ext.memory import compact


def assert_equal(net, x, slices, tolerance=1e-12, small=None):
    small = compact(net, x, slices=slices) if small is None else small
    theirs, ours = step(twin(net), x), step(small, x)
    assert (ours[0] - theirs[0]).abs().max() <= tolerance * theirs[0].abs().max()
    assert distance(ours[1], theirs[1]) <= tolerance
    assert distance(ours[2], theirs[2]) <= tolerance


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("node", [smooth, window])
def test_gradients(node, num_steps, slices):
    net, x = Membrane(node).double(), images(num_steps)
    (trunk,) = compact(net, x).compaction.trunks
    assert len(trunk.blocks) == 6 and trunk.blocks[0].main == (("stem.0", "stem.1"),)
    assert_equal(net, x, slices)
    assert_equal(net, x, slices, small=compact(net, x, slices=slices, keep="inputs"))


def test_a_stream_rebuilt_over_branches_that_end_with_weights():
    """Their outputs are then on record, though nothing else would need them."""
    net, x = Membrane().double(), images()
    for block in (*net.blocks1, net.blocks2):
        block.branch = block.branch[:2]
    small = compact(net, x, slices=2, keep="inputs")
    assert small.compaction.trunks[0].blocks[-1].main == (("blocks2.branch.0", "blocks2.branch.1"),)
    assert_equal(net, x, 2, small=small)


@pytest.mark.parametrize("slices", [1, 3])
def test_a_still_image_and_the_gradient_of_the_input(slices):
    net = Membrane().double()
    assert_equal(net, images(1).expand(3, -1, -1, -1, -1), slices)
    grads, x = [], images()
    for model in (twin(net), compact(net, x, slices=slices)):
        functional.reset_net(model)
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(model(leaf).square().sum(), leaf)[0])
    assert (grads[0] - grads[1]).abs().max() <= 1e-12 * grads[0].abs().max()


def test_sums_in_place_and_a_look_in_between():
    x = images()
    for name in ("in_place", "looks"):
        net = Membrane().double()
        for module in net.modules():
            if hasattr(module, name):
                setattr(module, name, True)
        assert len(compact(net, x).compaction.trunks) == (1 if name == "in_place" else 2)
        assert_equal(net, x, 2)


def test_a_look_that_the_example_did_not_have():
    net, x = Membrane().double(), images()
    small = compact(net, x, slices=2)
    net.looks = small.looks = True
    assert_equal(net, x, 2, small=small)


def test_hooks_on_a_block_see_what_they_would():
    net, x, seen = Membrane().double(), images(), []
    plain, small = twin(net), compact(net, x, slices=2)
    for model in (plain, small):
        model.down2.register_full_backward_hook(lambda m, into, out: seen.append(into[0].clone()))
        model.blocks2.register_forward_hook(lambda m, args, y: seen.append(y.detach().clone()))
    theirs, ours = step(plain, x), step(small, x)
    assert distance(ours[1], theirs[1]) <= 1e-12
    for a, b in zip(seen[:2], seen[2:], strict=True):
        torch.testing.assert_close(a, b)


def test_a_retained_graph_and_records_that_are_gone():
    net, x = Membrane().double(), images()
    small = compact(net, x, slices=2)
    loss = small(x).square().sum()
    weights = [net.stem[0].weight, net.blocks2.branch[1].weight]
    once = torch.autograd.grad(loss, weights, retain_graph=True)
    for a, b in zip(once, torch.autograd.grad(loss, weights), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_frozen_parts_and_autocast():
    net, x = Membrane(), images(dtype=torch.float32)
    net.stem.requires_grad_(False)
    net.blocks1[0].branch[1].weight.requires_grad_(False)
    results = []
    for model in (twin(net), compact(net, x)):
        functional.reset_net(model)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((y.detach(), grads))
    assert torch.equal(results[0][0], results[1][0])
    assert distance(results[1][1], results[0][1]) <= 1e-2  # of bfloat16


def test_the_drift_of_a_deep_stream():
    """40 blocks rebuilt in float32: rounding in the argument of a derivative, nothing else."""
    net = Membrane(blocks=40, widths=(3, 3))
    x = images(batch=2, side=4, dtype=torch.float32)
    theirs, ours = step(twin(net), x), step(compact(net, x), x)
    assert torch.equal(ours[0], theirs[0])
    assert distance(ours[1], theirs[1]) <= 1e-5


@pytest.mark.parametrize(("node", "most"), [(window, 3.6), (smooth, 5.4)])
def test_what_is_alive_at_once_is_a_stream_and_its_gradient(node, most):
    """In units of the stream at half the stem's resolution: the image is 1, the stem would be 4."""
    net = Membrane(node, widths=(8, 8), blocks=1)
    small, unit = compact(net, images(side=16, dtype=torch.float32), slices=99), 8 * 64 * 3 * 4

    def peak(batch):
        x = images(batch=batch, side=16, dtype=torch.float32)

        def train():
            functional.reset_net(small)
            small(x).sum().backward()

        train()
        return activation_memory(train)[1].peak

    assert (peak(6) - peak(3)) / 3 <= most * unit
