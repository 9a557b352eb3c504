"""Looking at a network leaves it as it was: state, mode and hooks, after an exception too."""

import pytest
import torch
from torch import nn

from sj_ext import host
from sj_ext.neuron import IMPLIFNode, MultiLevelFiringNode, TurnOnNode
from sj_ext.observe import at_rest, watching


@pytest.fixture
def running():
    """A network in the middle of a sequence, with modes of its own in the parts."""
    net = nn.Sequential(
        nn.Linear(4, 6),
        host.neuron.LIFNode(store_v_seq=True),
        TurnOnNode(),
        MultiLevelFiringNode(),
        nn.BatchNorm1d(6),
        IMPLIFNode(),
        nn.Dropout(0.5),
    )
    net(torch.randn(3, 4))
    net[4].eval()
    return net


def seen(net):
    """Everything that could change: the very objects of the state, flags, hooks and buffers."""
    return [
        (
            {name: id(value) for name, value in getattr(module, "_memories", {}).items()},
            module.training,
            dict(module._forward_hooks),
            dict(module._forward_pre_hooks),
            {name: buffer.tolist() for name, buffer in module.named_buffers(recurse=False)},
        )
        for module in net.modules()
    ]


def values(net):
    return [
        value.clone()
        for module in net.modules()
        for value in getattr(module, "_memories", {}).values()
        if isinstance(value, torch.Tensor)
    ]


def test_state_mode_and_hooks_are_as_before(running):
    before, held = seen(running), values(running)
    with at_rest(running):
        assert not any(module.training for module in running.modules())
        assert not values(running) and not torch.is_grad_enabled()
        y = running(torch.randn(5, 4))  # another batch size than the state's
    assert not y.requires_grad
    assert seen(running) == before and torch.is_grad_enabled()
    for one, other in zip(values(running), held, strict=True):
        assert torch.equal(one, other)


def test_also_after_an_exception(running):
    before = seen(running)

    def fail(*args):
        raise KeyError("of the user's own")

    with (
        pytest.raises(KeyError),
        at_rest(running),
        watching(dict(running.named_children()), fail),
    ):
        running(torch.randn(3, 4))
    assert seen(running) == before


def test_the_sequence_goes_on_as_if_nobody_had_looked(running):
    x = torch.randn(3, 4)
    running.eval()
    state = [value.clone() for value in values(running)]
    wanted = running(x)
    for module, (name, _) in _memories(running):
        module._memories[name] = state.pop(0)
    with at_rest(running):
        running(torch.randn(7, 4))
    assert torch.equal(running(x), wanted)


def _memories(net):
    return [
        (module, item)
        for module in net.modules()
        for item in list(getattr(module, "_memories", {}).items())
        if isinstance(item[1], torch.Tensor)
    ]


def test_a_memory_that_the_host_resets_in_place_keeps_its_values():
    node = host.neuron.LIFNode()
    node.set_reset_value("v", torch.zeros(3))
    node.v = torch.zeros(3)
    node(torch.ones(3))
    held, wanted = node.v, node.v.clone()
    with at_rest(node):
        node(torch.ones(3) * 5)
    assert node.v is held and torch.equal(held, wanted)


def test_layers_are_seen_with_their_key_input_and_output():
    layer = nn.Linear(3, 2)
    x, got = torch.randn(4, 3), []
    with watching([("one", layer), ("two", layer)], lambda *seen: got.append(seen)):
        y = layer(input=x)
    assert [entry[0] for entry in got] == ["one", "two"]
    assert all(m is layer and i is x and o is y for _, m, i, o in got)
    layer(x)
    assert len(got) == 2
