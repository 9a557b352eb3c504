"""State in and out: a stream in pieces outside Python is the whole sequence inside."""

import copy
from functools import partial

import nodes
import pytest
import torch
from torch import nn
from ways_out import WAYS

import sj_ext
from sj_ext import host
from sj_ext.layer import TemporalReversible
from sj_ext.neuron import IMPIFNode, IMPLIFNode, MultiLevelFiringNode, TurnOnNode

HELD = [name for name, contract in nodes.PLUGIN.items() if contract.potential]


def network(step_mode):
    layer = host.layer
    # the host's nodes of 0.0.0.0.14 start from x.data, which torch.export cannot follow
    last = IMPIFNode if host.GENERATION == 1 else host.neuron.LIFNode
    net = nn.Sequential(
        layer.Linear(6, 8, step_mode=step_mode),
        IMPLIFNode(step_mode=step_mode),
        layer.Linear(8, 8, step_mode=step_mode),
        MultiLevelFiringNode(step_mode=step_mode, thresholds=(0.2, 0.5)),
        TurnOnNode(decay_shape="channel", step_mode=step_mode),
        last(step_mode=step_mode),
    )
    return net.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("way", "step_mode"), [("export", "s"), ("jit", "m"), ("onnx", "m")])
def test_a_stream_in_pieces(way, step_mode):
    net = network(step_mode)
    shape = (3, 2, 2, 6) if step_mode == "m" else (3, 2, 6)
    pieces = 3 * torch.randn(shape)
    with torch.no_grad():
        explicit = sj_ext.ExplicitState(net, pieces[0])
        _, *state = explicit(pieces[0])
        first = WAYS[way](copy.deepcopy(explicit), (pieces[0],))
        next_ = WAYS[way](copy.deepcopy(explicit), (pieces[0], *state))
        host.functional.reset_net(net)
        for i, piece in enumerate(pieces):
            y, *state = first(piece) if i == 0 else next_(piece, *state)
            torch.testing.assert_close(y, net(piece), rtol=0, atol=0)
    assert explicit.state_names == ("1.v", "3.v", "4.v", "5.v")


@pytest.mark.parametrize("name", HELD)
def test_every_neuron_goes_on_from_its_state_and_is_left_as_it_was(name):
    node = nodes.PLUGIN[name].make(step_mode="m").eval()
    x = 2 * torch.randn(4, 2, 3, 5, 5)
    with torch.no_grad():
        explicit = sj_ext.ExplicitState(node, x[:2])
        first, *state = explicit(x[:2])
        second, *after = explicit(x[2:], *state)
        assert not isinstance(node.v, torch.Tensor)
        whole = node(x)
        assert torch.equal(torch.cat((first, second)), whole)
        assert torch.equal(after[0], node.v)
        explicit(x[:2])
        assert torch.equal(after[0], node.v)


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, below, above):
        return 2 * self.linear(below if above is None else below - above)


def test_a_cell_goes_on_from_its_states():
    cell = TemporalReversible([Level(), Level()], [0.5, 0.7]).eval()
    x = torch.randn(4, 2, 5)
    with torch.no_grad():
        explicit = sj_ext.ExplicitState(cell, x[:2])
        first, *state = explicit(x[:2])
        second, *_ = explicit(x[2:], *state)
        torch.testing.assert_close(torch.cat((first, second)), cell(x))
    assert explicit.state_names == ("u_0", "u_1")


def test_what_cannot_be_a_function_of_its_state():
    x = torch.randn(2, 2, 5)
    with pytest.raises(ValueError, match="model holds no state"):
        sj_ext.ExplicitState(nn.Linear(5, 5), x)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        sj_ext.ExplicitState(partial(torch.relu), x)
    columns = TemporalReversible([[Level()], [Level()]], [0.5])
    with pytest.raises(ValueError, match="cell itself has levels or decays of its own"):
        sj_ext.ExplicitState(columns, x)
    explicit = sj_ext.ExplicitState(nn.Sequential(TurnOnNode(), TurnOnNode()), x[0])
    with pytest.raises(ValueError, match="none or all of 2 states .*'0.v', '1.v'.*got 2 tensors"):
        explicit(x[0], x[0])
    with pytest.raises(ValueError, match="state|potential"):
        explicit(x[0], torch.zeros(3, 5), torch.zeros(3, 5))
