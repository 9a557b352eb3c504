"""Compiled levels, and a compiled network around the cell, give the same gradients."""

import copy

import torch
from cells import conv_input, conv_levels, difference, linear_levels, loss_of, twin
from torch import nn

from sj_ext.layer import TemporalReversible


def grads_of(net, x):
    leaf = x.clone().requires_grad_()
    loss_of(net(leaf), net.states).backward()
    named = {n.replace("_orig_mod.", ""): p.grad for n, p in net.named_parameters()}
    return {"input": leaf.grad, **named}


def compare(levels, x, **options):
    cell = TemporalReversible(levels, [0.5] * len(levels))
    oracle = twin(cell)
    for level in cell.levels:
        level.compile(**options)
    for _ in range(2):  # the second pass must find what the first one compiled
        wanted = grads_of(oracle, x)
        assert difference(grads_of(cell, x), wanted) < 1e-5
        cell.reset(), oracle.reset(), cell.zero_grad(), oracle.zero_grad()
    return cell


def test_levels_compiled_by_inductor():
    compare(linear_levels((6, 5)), torch.randn(4, 3, 6))


def test_convolution_levels_compiled_with_batch_norm():
    compare(conv_levels(dropout=0.0), conv_input(4), backend="aot_eager")


def test_compiled_modules_as_levels(seed):
    levels = linear_levels()
    cell = TemporalReversible([torch.compile(m, backend="aot_eager") for m in levels], [0.5] * 3)
    oracle = TemporalReversible(copy.deepcopy(levels), [0.5] * 3, memory="autograd")
    x = torch.randn(4, 3, 6)
    assert difference(grads_of(cell, x), grads_of(oracle, x)) < 1e-5


def test_undoing_compiles_nothing_anew():
    """Two graphs for a level, one without and one with gradients, serve every pass."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    cell = TemporalReversible(linear_levels(feedback=False), [0.5] * 3, feedback=False)
    for level in cell.levels:
        level.compile(backend=backend)
    cell(torch.randn(4, 3, 6)).sum().backward()
    first = len(compiled)
    for _ in range(3):
        cell.reset()
        cell(torch.randn(4, 3, 6)).sum().backward()
    assert len(compiled) == first <= 3 * 2 + 1


def test_a_compiled_network_with_a_cell_in_it(seed):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(3, 6)
            self.cell = TemporalReversible(linear_levels(), [0.5] * 3)

        def forward(self, x_seq):
            return self.cell(self.stem(x_seq)).mean(0)

    network, x = Network(), torch.randn(4, 3, 3)
    plain = copy.deepcopy(network)
    plain.cell.memory = "autograd"
    torch.compile(network, backend="aot_eager")(x).square().sum().backward()
    plain(x).square().sum().backward()
    found, wanted = ({n: p.grad for n, p in net.named_parameters()} for net in (network, plain))
    assert difference(found, wanted) < 1e-5
