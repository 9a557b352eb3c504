"""Kinds of value at the door, the same in every node: dtypes, modes of PyTorch, devices, axes."""

import nodes
import pytest
import torch
from contracts import run
from small_transformers import MODELS
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


def test_explicit_states_refuse_integers_too(contract):
    node = contract.make(step_mode="m")
    if not hasattr(node, "functional_forward"):
        pytest.skip("the host's nodes of 0.0.0.0.14 have no functional forward")
    states = tuple(node._memories.values())
    with pytest.raises(TypeError, match="floating-point dtype, got torch.int32"):
        node.functional_forward((torch.ones(SHAPE, dtype=torch.int32),), states)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_what_is_no_tensor_and_a_sequence_without_an_axis_are_refused(contract, step_mode):
    node = contract.make(step_mode=step_mode)
    for value in (None, 1.0, [1.0, 2.0]):
        with pytest.raises(TypeError, match="the input of .* must be a"):
            node(value)
    if step_mode == "m" and contract.potential:
        with pytest.raises(ValueError, match=r"must be \[T, N, \*\] in step mode 'm'"):
            node(torch.tensor(0.7))


def test_models_refuse_integers_as_their_nodes_do():
    frames, images = torch.ones(2, 2, 2, 16, 16), torch.ones(2, 3, 16, 16)
    events = sj_ext.model.TRevSNN((4, 4, 4, 4), 5, 2, events=True)
    static = sj_ext.model.TRevSNN((4, 4, 4, 4), 5, 2)
    transformer = MODELS["spikformer"].build()
    for net, x in ((events, frames), (static, images), (transformer, images)):
        for dtype in (torch.uint8, torch.int64):
            with pytest.raises(TypeError, match=f"x must be of a floating.*got {dtype}"):
                net(x.to(dtype))


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
