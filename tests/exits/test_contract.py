"""The columns ONNX and jit of the neurons' contract: from rest, and with the state in and out.

Every neuron of the table stands beside the others in one small network, since an export costs what
it costs however little is in it.
"""

import copy
import functools

import nodes
import pytest
import torch
from torch import nn
from ways_out import WAYS

import sj_ext

NAMES = list(nodes.PLUGIN)
SHAPE = 2, 2, 3, 2, 2  # T, N, C, H, W


class SideBySide(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.nodes = nn.ModuleList(nodes.PLUGIN[name].make(step_mode="m") for name in names)

    def forward(self, x):
        return tuple(node(x) for node in self.nodes)


class RestAndOn(nn.Module):
    """From rest, and on from a state, in one graph."""

    def __init__(self, explicit):
        super().__init__()
        self.explicit = explicit

    def forward(self, x, *state):
        return *self.explicit(x), *self.explicit(x, *state)


@functools.cache
def both_sides(way, names=tuple(NAMES)):
    """What comes out outside and inside, for an input and a state that made no graph."""
    net = SideBySide(names).eval()
    example, x = (2 * torch.randn(SHAPE) for _ in range(2))
    with torch.no_grad():
        explicit = sj_ext.ExplicitState(net, example)
        state = explicit(example)[len(names) :]
        outside = WAYS[way](RestAndOn(copy.deepcopy(explicit)), (example, *state))
        state = explicit(x)[len(names) :]
        found = outside(x, *state)
        wanted = RestAndOn(explicit)(x, *state)
    held = [int(path.split(".")[1]) for path in explicit.state_names]
    return found, wanted, held


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["onnx", "jit"])
def test_outside_it_is_what_it_is_inside(way, name):
    try:
        found, wanted, held = both_sides(way)
    except Exception:
        found, wanted, held = both_sides(way, (name,))  # whose fault is it?
        NAMED = [name]
    else:
        NAMED = NAMES
    index, half = NAMED.index(name), len(NAMED) + len(held)
    places = [index] + [len(NAMED) + i for i, node in enumerate(held) if node == index]
    assert len(places) == 1 + nodes.PLUGIN[name].potential
    for place in (*places, *(half + place for place in places)):
        assert wanted[place].abs().sum() > 0
        if nodes.PLUGIN[name].graded:  # an exponential is another library's there
            torch.testing.assert_close(found[place], wanted[place])
        else:
            torch.testing.assert_close(found[place], wanted[place], rtol=1e-5, atol=1e-6)
    if not nodes.PLUGIN[name].graded:
        assert torch.equal(found[index], wanted[index])
        assert torch.equal(found[half + index], wanted[half + index])
