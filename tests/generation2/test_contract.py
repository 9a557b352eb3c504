"""SpikingJelly 2.x: what its tools and PyTorch's ask of every neuron in the table ``PLUGIN``."""

import nodes
import pytest
import torch
from contracts import assert_same, gradients, ready, run, sequence, twin_of
from spikingjelly.activation_based import base

from sj_ext import host

functional = host.functional


@pytest.fixture(params=nodes.PLUGIN)
def contract(request):
    return nodes.PLUGIN[request.param]


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_functional_forward_is_the_module_without_its_memory(contract, step_mode):
    x_seq = sequence()
    x = x_seq if step_mode == "m" else x_seq[0]
    node = ready(contract, step_mode)
    module = twin_of(node)
    states = tuple(base.extract_memories(node))
    forward = base.to_functional_forward(node)
    for _ in range(2):
        (y,), states = forward((x,), states)
        assert torch.equal(module(x), y)
        assert_same(states, base.extract_memories(module))
    assert all(isinstance(value, float) for value in base.extract_memories(node))
    wanted = gradients(module, x_seq, module(x))
    (y,), _ = forward((x,), states)
    assert_same(gradients(node, x_seq, y), wanted)


def test_compiled_into_one_graph_it_is_the_eager_one(contract):
    x_seq = sequence()
    node = ready(contract)
    eager = twin_of(node)
    compiled = torch.compile(node, backend="aot_eager", fullgraph=True)
    y_seq, wanted = compiled(x_seq), eager(x_seq)
    assert torch.equal(y_seq, wanted)
    found = gradients(node, x_seq, y_seq)
    assert_same(found, gradients(eager, x_seq, wanted), rtol=1e-4, atol=1e-5)
    assert_same(base.extract_memories(node), base.extract_memories(eager))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_vmap(contract, step_mode):
    node = ready(contract, step_mode)
    x_seqs = torch.stack([sequence().detach() for _ in range(3)])

    def forward(x_seq):
        functional.reset_net(node)
        y_seq = run(node, x_seq)
        functional.reset_net(node)  # nothing of the transform stays in the memory
        return y_seq

    with torch.no_grad():
        if contract.vmap:
            assert torch.equal(torch.vmap(forward)(x_seqs), torch.stack([*map(forward, x_seqs)]))
        else:  # its surrogate or its own autograd function has no rule, and PyTorch says so
            with pytest.raises(RuntimeError, match="vmap"):
                torch.vmap(forward)(x_seqs)
