"""Every spiking transformer with the rest of the package and of PyTorch."""

import copy

import pytest
import torch
from small_transformers import MODELS

import sj_ext
from sj_ext import host
from sj_ext.layer import fuse

every_model = pytest.mark.parametrize("small", MODELS.values(), ids=MODELS)


@every_model
def test_fused_for_inference_it_computes_the_same(small):
    net = small.net().double().eval()
    fused = fuse(net)
    left = [m for m in fused.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert bool(left) == small.keeps_norms
    x = small.input().double()
    torch.testing.assert_close(fused(x), net(x))
    with pytest.raises(RuntimeError, match="evaluation mode"):
        fuse(net.train())


@every_model
def test_its_neurons_are_swapped_for_ones_with_an_initial_potential(small):
    net = small.net()
    kinds = {type(m) for m in net.modules() if isinstance(m, host.neuron.BaseNode)}
    kinds -= {sj_ext.neuron.NegIFNode}  # part of a transform
    x = small.input()
    net(x)
    host.functional.reset_net(net)
    mapping = {
        host.neuron.LIFNode: sj_ext.neuron.IMPLIFNode,
        host.neuron.ParametricLIFNode: sj_ext.neuron.IMPParametricLIFNode,
    }
    count = sj_ext.swap_neurons(net, {k: mapping[k] for k in kinds})
    swapped = [m for m in net.modules() if type(m) in mapping.values()]
    assert count == len(swapped)
    net(x).sum().backward()


@every_model
def test_it_is_pruned(small):
    net = small.net()
    pruner = sj_ext.pruning.MinimaxPruner(net, budget=0.5)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        net(small.input()).square().mean().backward()
        optimizer.step()
        pruner.step()
        host.functional.reset_net(net)
    assert 0 < pruner.density <= 1


@every_model
def test_autocast_computes_in_half_precision(small):
    net = small.net()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(small.input(n=4))
    assert bool(y.isfinite().all())
    y.float().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@every_model
def test_a_copy_computes_the_same_and_a_state_dict_carries_it_over(small):
    net = small.net().eval()
    other = small.build().eval()
    other.load_state_dict(net.state_dict())
    x = small.input()
    y = net(x)
    assert torch.equal(other(x), y)
    host.functional.reset_net(net)
    assert torch.equal(copy.deepcopy(net)(x), y)


@pytest.mark.parametrize(
    "small",
    [s for n, s in MODELS.items() if not n.startswith("meta")],
    ids=[n for n in MODELS if not n.startswith("meta")],
)
def test_compact_memory_gives_the_same_gradients(small):
    net = small.net().double()
    x = small.input(n=4).double()
    found = []
    for shrink in (False, True):
        own = copy.deepcopy(net)
        network = sj_ext.memory.compact(own, x[:2]) if shrink else own
        y = network.train()(x)
        y.square().sum().backward()
        # where no spike carries a gradient back there is none, or one of zeros
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own.parameters()]
        found.append([y, *grads])
    for plain, compact in zip(*found, strict=True):
        torch.testing.assert_close(compact, plain, rtol=1e-6, atol=1e-6)
