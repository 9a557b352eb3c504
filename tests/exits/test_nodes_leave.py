"""Every neuron leaves Python by each way, and fires outside as it does inside."""

import copy

import nodes
import pytest
import torch
from ways_out import WAYS

from sj_ext import host
from sj_ext.layer import TemporalReversible
from sj_ext.neuron import TurnOnNode

WAYS_THAT_ARE_QUICK = ("export", "jit")


def inputs_of(step_mode):
    """Two inputs: the one that a graph is made from, and another."""
    shape = (2, 2, 4, 5, 5) if step_mode == "m" else (2, 4, 5, 5)
    return 2 * torch.randn(shape), 2 * torch.randn(shape)


def answer(node, x):
    host.functional.reset_net(node)
    y = node(x)
    host.functional.reset_net(node)
    return y.detach()


@pytest.mark.parametrize("name", nodes.PLUGIN)
@pytest.mark.parametrize("way", WAYS_THAT_ARE_QUICK)
def test_a_neuron_from_rest(name, way):
    # step mode 's' runs the same arithmetic for one step
    step_mode = "s" if torch.rand(()) < 0.3 else "m"
    example, x = inputs_of(step_mode)
    node = nodes.PLUGIN[name].make(step_mode=step_mode).eval()
    with torch.no_grad():
        answer(node, example)  # sizes that are taken from the first input
        outside = WAYS[way](copy.deepcopy(node), (example,))
        expected = answer(node, x)
        assert 0 < expected.mean() < nodes.PLUGIN[name].levels[0] if "Multi" in name else 1
        if nodes.PLUGIN[name].graded:  # an exponential is another library's there
            torch.testing.assert_close(outside(x), expected)
        else:
            assert torch.equal(outside(x), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", nodes.PLUGIN)
@pytest.mark.parametrize("way", ["jit"])
def test_a_neuron_that_could_still_be_trained(name, way):
    """Nothing prepared: gradients are enabled and parameters ask for them."""
    example, x = inputs_of("m")
    node = nodes.PLUGIN[name].make(step_mode="m").eval()
    answer(node, example)
    outside = WAYS[way](copy.deepcopy(node), (example,))
    assert torch.equal(outside(x).detach(), answer(node, x))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("IMPLIFNode", "export"),
        ("TurnOnNode channel", "jit"),
        ("TurnOnNode channel", "onnx"),
    ],
)
def test_batches_of_another_size(name, way):
    example, _ = inputs_of("m")
    node = nodes.PLUGIN[name].make(step_mode="m").eval()
    with torch.no_grad():
        answer(node, example)
        module = torch.nn.Sequential(copy.deepcopy(node))
        if way == "jit":
            outside = WAYS[way](module, (example,))
        else:
            sizes = ({1: torch.export.Dim("batch", min=2)},)
            program = torch.export.export(module, (example,), dynamic_shapes=sizes)
            outside = program.module() if way == "export" else WAYS[way](program, None)
        for size in (3, 7):
            x = 2 * torch.randn(2, size, 4, 5, 5)
            assert torch.equal(outside(x), answer(node, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["TurnOnNode", "TurnOffNode", "MultiLevelFiringNode"])
@pytest.mark.parametrize("way", WAYS_THAT_ARE_QUICK)
def test_other_dtypes(name, dtype, way):
    example, x = (x.to(dtype) for x in inputs_of("m"))
    node = nodes.PLUGIN[name].make(step_mode="m").eval()
    with torch.no_grad():
        outside = WAYS[way](copy.deepcopy(node), (example,))
        assert torch.equal(outside(x), answer(node, x)) and outside(x).dtype == dtype


@pytest.mark.parametrize("way", WAYS)
def test_decays_of_either_sign_and_size_and_potentials_at_the_threshold(way):
    """What ONNX has no operator of its own for: the sign of a decay below ``min_decay``."""
    node = TurnOnNode([0.5, -0.7, 0.9, -0.9], decay_shape="channel", step_mode="m")
    with torch.no_grad():
        node.decay.copy_(torch.tensor([0.5, -0.7, 1e-5, -1e-5]))
        outside = WAYS[way](copy.deepcopy(node).eval(), (torch.zeros(3, 2, 4),))
        x = torch.tensor([0.5, 0.25, -0.25, 1.0])[torch.randint(4, (3, 2, 4))]
        assert torch.equal(outside(x), answer(node, x))
        x = torch.full((3, 2, 4), 500.0)
        x[1:] = 0.9
        assert torch.equal(outside(x), answer(node, x))


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 5)

    def forward(self, below, above):
        return 2 * self.linear(below if above is None else below - above)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("way", WAYS)
def test_a_cell_from_rest(step_mode, way):
    cell = TemporalReversible([Pair(), Pair()], [0.5, -0.6], step_mode=step_mode)
    if way == "onnx" and step_mode == "s":
        pytest.skip("one step is what a sequence repeats")
    shape = (2, 4, 5) if step_mode == "m" else (4, 5)
    example, x = torch.randn(shape), torch.randn(shape)
    with torch.no_grad():
        outside = WAYS[way](copy.deepcopy(cell).eval(), (example,))
        torch.testing.assert_close(outside(x), answer(cell, x))
    with torch.enable_grad():
        if way == "export":
            outside = WAYS[way](copy.deepcopy(cell).eval(), (example,))
            torch.testing.assert_close(outside(x).detach(), answer(cell, x))


def test_tracing_what_could_be_trained_is_told():
    """The trace of a spike has no gradient of ours; PyTorch would differentiate it, and find 0."""
    node, x = TurnOnNode(step_mode="m").eval(), torch.randn(3, 2, 4)
    with pytest.warns(torch.jit.TracerWarning, match="no gradient.*torch.no_grad"):
        torch.jit.trace(node, (x,), check_trace=False)
