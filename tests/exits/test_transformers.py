"""Every spiking transformer leaves Python, and computes outside what it does inside.

All are exported. The other ways are slow, and start from the same program or the same arithmetic:
they are gone by those whose mixing has operators of its own.
"""

import pytest
import torch
from small_transformers import MODELS
from ways_out import WAYS

import sj_ext
from sj_ext import host
from sj_ext.layer import haar
from sj_ext.layer.haar import haar_matrix
from sj_ext.neuron import IMPLIFNode, IMPParametricLIFNode

FAMILIES = (
    "attention_free",
    "autost",
    "dista",
    "meta_spikeformer",
    "sglformer",
    "spikeformer",
    "spikformer",
    "spiking_resformer",
    "spikingformer",
    "sts",
    "swformer",
)

#: whether SpikingJelly's own neurons can be traced; where not, neurons that are them from rest are
TRACEABLE = host.GENERATION == 2
SAME_FROM_REST = {
    host.neuron.LIFNode: IMPLIFNode,
    host.neuron.ParametricLIFNode: IMPParametricLIFNode,
}

#: both warn: of memories that were assigned to, and of caches that are looked through
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def network(family, steps=2):
    """A network from rest, the input that a graph is made from, another and its output."""
    small = MODELS[family]
    net = small.net(T=steps).eval()
    x = small.input(8)
    y = net(x)
    assert y.std(1).max() > 0  # it sees what it is given
    host.functional.reset_net(net)
    if not TRACEABLE:
        sj_ext.swap_neurons(net, SAME_FROM_REST, imp_shape="layer", imp_init=(0, 0))
    return net, small.input(8), x, y


def assert_same(found, expected):
    """Rounding may take a potential across its threshold, but in few samples."""
    assert found.shape == expected.shape
    difference = (found - expected).abs().amax((0, 2))
    assert (difference < 1e-5).sum() >= len(difference) - 2, difference


def test_there_is_no_other_family():
    modules = {small.build.func.__module__ for small in MODELS.values()}
    assert sorted(modules) == [MODELS[name].build.func.__module__ for name in FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
def test_exported(family):
    # neurons that are swapped in are twice as many operations, and have a test of their own
    net, example, x, y = network(family, steps=2 if TRACEABLE else 1)
    assert torch.equal(torch.export.export(net, (example,)).module()(x), y)


@pytest.mark.parametrize("family", ["attention_free", "autost", "spiking_resformer", "swformer"])
def test_traced(family):
    net, example, x, y = network(family)
    assert_same(WAYS["jit"](net, (example,))(x), y)


@pytest.mark.parametrize("family", ["attention_free", "spikingformer"])
def test_onnx(family):
    net, example, x, y = network(family, steps=2 if TRACEABLE else 1)
    assert_same(WAYS["onnx"](net, (example,))(x), y)


@pytest.mark.skipif(not TRACEABLE, reason="its neurons break the graph in many pieces: slow")
@pytest.mark.parametrize("family", ["sts", "spikingformer"])
def test_compiled(family):
    net, _, x, y = network(family)
    assert_same(torch.compile(net, backend="eager", fullgraph=True)(x), y)


@pytest.mark.parametrize("where", ["exported", "meta"])
def test_a_haar_matrix_outlives_what_it_was_first_asked_for_in(where):
    class Transform(torch.nn.Module):
        def forward(self, x):
            return haar_matrix(x.shape[-1]).to(x) @ x

    haar._matrix.cache_clear()
    x = torch.randn(8, 8)
    if where == "meta":
        with torch.device("meta"):
            Transform()(x.to("meta"))
    else:
        torch.export.export(Transform(), (x,))
    rows = Transform()(torch.eye(8))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(8))
