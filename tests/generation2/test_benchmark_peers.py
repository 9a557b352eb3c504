"""SpikingJelly's memory optimiser, as the benchmark applies it, changes no gradient."""

import pytest
import torch
from benchmarks.lib import peers

from sj_ext.analysis import activation_memory

SIDE, SEARCHED = 32, 2


def gradients(net, images, target):
    net.zero_grad()
    peers.loss(net, images, target).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("num_steps", [2, 4])
def test_memopt_saves_memory_and_keeps_the_gradients(num_steps):
    torch.manual_seed(0)
    # in float64, since chunks of another size are summed in another order, and spikes may flip
    optimised = peers.with_memopt("SEW-ResNet-18", num_steps, SIDE, "cpu", SEARCHED).double()
    plain = peers.PEERS["SEW-ResNet-18"].build(num_steps).double()
    names = [name for name, _ in plain.named_parameters()]
    own = {n.replace("_checkpoint_wrapped_module.", ""): p for n, p in optimised.named_parameters()}
    assert set(own) == set(names)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(own[name])
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    target = torch.randint(1000, (2,))
    found, wanted = (gradients(net, images, target) for net in (optimised, plain))
    torch.testing.assert_close(found, wanted)
    held = [
        activation_memory(lambda net=net: peers.loss(net, images, target))[1].saved
        for net in (optimised, plain)
    ]
    assert held[0] < held[1] / 2


def test_the_search_is_run_with_counted_bytes():
    plan = peers.memopt_plan("SEW-ResNet-18", SEARCHED, SIDE, "cpu")
    paths = [part.path for part in plan]
    assert len(set(paths)) == len(paths)
    assert any(path.startswith("net.layer4.1") for path in paths)
    assert any(path.startswith("net.conv1") for path in paths)
