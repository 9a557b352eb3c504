"""The block as one function equals the composition of its parts, and keeps bits."""

import copy

import pytest
import torch
from torch import nn

from sj_ext.analysis import activation_memory
from sj_ext.model.trevsnn.blocks import BlockTail, SpikingBlock
from sj_ext.neuron import TurnOffNode
from sj_ext.surrogate import ClosedRect, DSpike, Rect

NORMS = ["ws", "bn"]


def block_pair(norm, gamma, dtype=torch.float64, channels=6, alphas=(1.0, 1.0)):
    """A block that runs as one function, and its twin that a hook makes run part by part."""
    whole = SpikingBlock(channels, 3, norm, gamma_init=gamma).to(dtype)
    for p in whole.parameters():
        torch.nn.init.normal_(p, std=0.7)
    for node, alpha in zip((whole.neuron1, whole.neuron2), alphas, strict=True):
        node.surrogate_function = Rect(alpha)
    parts = copy.deepcopy(whole)
    parts.neuron1.register_forward_hook(lambda *_: None)
    return whole, parts


def gradients(block, x, grad):
    y = block(x)
    return y, torch.autograd.grad(y, [x, *block.parameters()], grad)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gamma", [None, 0.5])
@pytest.mark.parametrize("alphas", [(1.0, 1.0), (0.4, 2.0)])
def test_one_function_equals_its_parts(norm, gamma, alphas):
    whole, parts = block_pair(norm, gamma, alphas=alphas)
    x = torch.randn(3, 6, 7, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    mine, my_grads = gradients(whole, x, grad)
    theirs, their_grads = gradients(parts, x, grad)
    assert type(mine.grad_fn).__name__ == "_SpikingBlockBackward"
    torch.testing.assert_close(mine, theirs)
    for name, a, b in zip(
        ["x", *(n for n, _ in whole.named_parameters())], my_grads, their_grads, strict=True
    ):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("closed", [False, True])
def test_inputs_on_the_ends_of_the_window(closed):
    """Where biases are 0, so are the hidden potentials of a patch without spikes."""
    whole, parts = block_pair("ws", 0.5)
    for block in (whole, parts):
        for node in (block.neuron1, block.neuron2):
            node.surrogate_function = (ClosedRect if closed else Rect)()
        nn.init.zeros_(block.dwconv.bias), nn.init.zeros_(block.pwconv.bias)
    x = torch.randint(-2, 5, (3, 6, 7, 5)).double() / 4
    x[:, :, :4] = 0
    x.requires_grad_()
    grad = torch.randn_like(x)
    (_, mine), (_, theirs) = gradients(whole, x, grad), gradients(parts, x, grad)
    torch.testing.assert_close(mine, theirs)
    reaches = (mine[0] != grad)[:, :, 1]
    assert reaches.all() if closed else not reaches.any()


@pytest.mark.parametrize("norm", NORMS)
def test_scale_of_zero_still_learns(norm):
    """ReZero starts the scale at 0, where a gradient by division by the scale would be lost."""
    whole, parts = block_pair(norm, 0.0)
    nn.init.zeros_(whole.gamma), nn.init.zeros_(parts.gamma)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    (_, mine), (_, theirs) = gradients(whole, x, grad), gradients(parts, x, grad)
    assert mine[1].abs().max() > 0  # gamma comes first among the parameters
    torch.testing.assert_close(mine, theirs)


def test_evaluation_runs_the_parts_with_the_same_result():
    whole, _ = block_pair("ws", 1.0)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    trained = whole(x)
    seen = []
    whole.eval()
    handle = whole.pwconv.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(whole(x), trained)
    assert seen == [1]
    handle.remove()


def test_exchanged_parts_are_used():
    block = SpikingBlock(4, 3, "ws", gamma_init=1.0)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    assert type(block(x).grad_fn).__name__ == "_SpikingBlockBackward"
    block.neuron2 = TurnOffNode(0.5, DSpike())
    assert type(block(x).grad_fn).__name__ != "_SpikingBlockBackward"
    block.neuron2 = TurnOffNode()
    block.tail.dwconv = nn.Identity()
    torch.testing.assert_close(
        block(x), x + block.tail.pwconv(block.neuron2(block.pwconv(block.dwconv(block.neuron1(x)))))
    )


def test_a_shared_tail_collects_both_gradients():
    tail = BlockTail.new(4, 3, "ws")
    blocks = nn.Sequential(*(SpikingBlock(4, 3, "ws", tail=tail) for _ in range(2)))
    twin = copy.deepcopy(blocks)
    twin[0].neuron1.register_forward_hook(lambda *_: None)
    twin[1].neuron1.register_forward_hook(lambda *_: None)
    x = torch.randn(2, 4, 6, 6)
    for net in (blocks, twin):
        net.double()(x.double()).square().sum().backward()
    for (name, p), q in zip(blocks.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_autocast_agrees_with_the_parts():
    whole, parts = block_pair("ws", 1.0, torch.float32, channels=16)
    x = torch.randn(4, 16, 8, 8, requires_grad=True)
    grad = torch.randn_like(x)
    results = []
    for block in (whole, parts):
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        assert y.dtype is torch.float32
        results.append(torch.autograd.grad(y, [x, *block.parameters()], grad))
    flat = [torch.cat([g.flatten() for g in grads]) for grads in results]
    assert (flat[0] - flat[1]).norm() <= 2e-2 * flat[1].norm()


def test_kept_is_one_tensor_and_ten_bits_per_element():
    """q in full; two bits for each element of s and for the four of the hidden layer."""
    block = SpikingBlock(32, 3, "bn", gamma_init=1.0)
    x = torch.randn(2, 32, 16, 16, requires_grad=True)
    y, memory = activation_memory(lambda: block(x))
    scaled_tail = 4 * (block.tail.dwconv.weight.numel() + 32)
    assert memory.saved <= 4 * y.numel() + 4 * x.numel() + x.numel() * 10 // 8 + scaled_tail
    block.neuron1.register_forward_hook(lambda *_: None)
    _, parts = activation_memory(lambda: block(x))
    assert parts.saved > 3 * memory.saved


def test_the_hidden_layer_is_never_there_as_a_whole():
    block = SpikingBlock(16, 3, "bn")
    x = torch.randn(2, 16, 32, 32, requires_grad=True)
    size = 4 * x.numel()

    def step():
        block(x).sum().backward()

    _, memory = activation_memory(step)
    assert memory.peak <= 9 * size
    block.neuron1.register_forward_hook(lambda *_: None)
    _, parts = activation_memory(step)
    assert parts.peak > 14 * size


def test_compiled_equals_eager():
    block, _ = block_pair("ws", 1.0)
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    eager = gradients(block, x, grad)
    compiled_block = torch.compile(block, backend="aot_eager")
    y = compiled_block(x)
    torch.testing.assert_close(y, eager[0])
    torch.testing.assert_close(torch.autograd.grad(y, [x, *block.parameters()], grad), eager[1])


def test_memory_format_does_not_matter():
    whole, parts = block_pair("ws", 1.0)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(x.shape, dtype=torch.float64)
    (_, mine), (_, theirs) = gradients(whole, x, grad), gradients(parts, x, grad)
    torch.testing.assert_close(mine, theirs)
