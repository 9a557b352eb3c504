"""Kinds of value at the door, the same in every node: dtypes, modes of PyTorch, devices, axes."""

import nodes
import pytest
import torch
from contracts import run
from torch import nn

import sj_ext
from sj_ext import host

functional = host.functional
SHAPE = 3, 2, 4, 3, 2


@pytest.fixture(params=nodes.PLUGIN)
def contract(request):
    return nodes.PLUGIN[request.param]


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_first_forward_in_inference_mode_leaves_a_node_that_learns(contract, step_mode):
    node = contract.make(step_mode=step_mode)
    with torch.inference_mode():
        run(node, torch.rand(SHAPE))
    functional.reset_net(node)
    x_seq = (torch.rand(SHAPE) * 2).requires_grad_()
    run(node, x_seq).sum().backward()
    assert x_seq.grad is not None
    for name, parameter in node.named_parameters():
        assert parameter.grad is not None and not parameter.is_inference(), name


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8, torch.bool])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_integers_are_refused_by_name(contract, step_mode, dtype):
    node = contract.make(step_mode=step_mode)
    x = torch.ones(SHAPE if step_mode == "m" else SHAPE[1:], dtype=dtype)
    with pytest.raises(TypeError, match=f"the input of .* floating-point dtype, got {dtype}"):
        node(x)


def test_every_node_is_built_and_shown_on_the_meta_device(contract):
    with torch.device("meta"):
        net = nn.Sequential(contract.make(step_mode="m"))
        sj_ext.materialize(net, torch.empty(SHAPE, device="meta"))
    assert all(p.is_meta for p in net.parameters()) and repr(net)
    net.to_empty(device="cpu")
    assert not any(p.is_meta for p in net.parameters()) and repr(net)


@pytest.mark.parametrize("name", ["IMPIFNode layer", "MultiLevelFiringNode", "TurnOffNode"])
def test_one_number_is_an_input_as_for_the_hosts_nodes(name):
    node = nodes.PLUGIN[name].make()
    assert node(torch.tensor(0.7)).shape == host.neuron.IFNode()(torch.tensor(0.7)).shape == ()
