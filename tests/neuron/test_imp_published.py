"""Weights and recordings of the IMP paper's own program."""

from pathlib import Path

import numpy
import pytest
import torch
from spikingjelly.activation_based.model import sew_resnet
from torch import nn

from sj_ext import host, swap_neurons
from sj_ext.neuron import IMPIFNode, IMPLIFNode
from sj_ext.neuron.published import published_to_ours

RECORDED = Path(__file__).parent / "recordings" / "imp_nodes.npz"


def cases():
    with numpy.load(RECORDED) as arrays:
        return sorted({name.rsplit("/", 1)[0] for name in arrays.files})


@pytest.mark.parametrize("case", cases())
def test_recorded_nodes_are_met(case):
    """Spikes are equal, potentials and gradients to rounding: the program ran in float32."""
    kind, shape, v_reset, mode, detach, squashed, surrogate = case.split("|")
    with numpy.load(RECORDED) as arrays:
        x, w, theta, y, v, grad = (
            torch.from_numpy(arrays[f"{case}/{part}"])
            for part in ("x", "w", "theta", "y", "v", "gtheta")
        )
    v_reset = None if v_reset == "None" else float(v_reset)
    offset = v_reset or 0.0
    squash = (lambda t: offset + torch.sigmoid(t)) if squashed == "1" else None
    options = {} if kind == "IF" else {"tau": 1.7, "decay_input": kind == "LIF"}
    node = (IMPIFNode if kind == "IF" else IMPLIFNode)(
        **options,
        v_reset=v_reset,
        detach_reset=detach == "1",
        step_mode=mode,
        surrogate_function=getattr(host.surrogate, surrogate)(),
        imp_shape=shape,
        imp_squash=squash,
    )
    network = nn.Sequential(node)
    eager = squash is None  # the offset of squashed ones stands in the squash above
    state = published_to_ours(network, {"0.init_state": theta}, eager=eager)
    network.load_state_dict(state)
    got = network(x) if mode == "m" else torch.stack([network(step) for step in x])
    assert torch.equal(got.bool(), y)
    torch.testing.assert_close(node.v, v, rtol=0, atol=1e-5)
    ((got * w).sum() + node.v.sum()).backward()
    torch.testing.assert_close(node.theta.grad.reshape(grad.shape), grad, rtol=1e-4, atol=1e-5)


def swapped_sew_resnet(**options):
    net = sew_resnet.sew_resnet18(
        pretrained=False, num_classes=5, cnf="ADD", spiking_neuron=host.neuron.IFNode
    )
    host.functional.set_step_mode(net, "m")
    assert swap_neurons(net, {host.neuron.IFNode: IMPIFNode}, **options) == 20
    return net


@pytest.mark.parametrize("shape", ["layer", "channel"])
@pytest.mark.parametrize("theirs, prefix", [("init_state", "module."), ("mem", "")])
def test_a_swapped_network_loads_the_programs_names(shape, theirs, prefix):
    source, net = swapped_sew_resnet(imp_shape=shape), swapped_sew_resnet(imp_shape=shape)
    x = torch.rand(2, 1, 3, 32, 32)
    source(x)  # gives the potentials their sizes
    host.functional.reset_net(source)
    state = {}
    for name, value in source.state_dict().items():
        if name.endswith("theta"):
            value = value.reshape(1, -1, 1, 1)
        state[prefix + name.replace("theta", theirs)] = value
    net.load_state_dict(published_to_ours(net, state))
    for (name, p), q in zip(source.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(p, q), name
    source.eval(), net.eval()
    torch.testing.assert_close(net(x), source(x))


def test_what_does_not_fit_is_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), IMPIFNode(v_reset=0.25, imp_shape=(1, 2, 1, 1)))
    theta = torch.rand(1, 2, 1, 1)
    with pytest.raises(ValueError, match=r"no neuron .* at '0'; it has them at \['1'\]"):
        published_to_ours(net, {"0.init_state": theta})
    with pytest.raises(ValueError, match=r"theta of shape \[1, 2, 1, 1\]"):
        published_to_ours(net, {"1.init_state": torch.rand(1, 3, 1, 1)})
    with pytest.raises(ValueError, match=r"eager must be True or False .* v_reset=0.25"):
        published_to_ours(net, {"1.init_state": theta})
    torch.testing.assert_close(
        published_to_ours(net, {"1.mem": theta}, eager=True)["1.theta"], theta + 0.25
    )
    assert torch.equal(published_to_ours(net, {"1.mem": theta}, eager=False)["1.theta"], theta)
    net[1].imp_squash = torch.sigmoid
    with pytest.raises(ValueError, match="outside the squash"):
        published_to_ours(net, {"1.init_state": theta}, eager=True)
