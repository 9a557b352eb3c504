"""What pruning holds over the plain network, counted at the allocator."""

import torch
from torch import nn

from sj_ext import host
from sj_ext.analysis import activation_memory
from sj_ext.pruning import MinimaxPruner, Schedule, make_permanent
from sj_ext.pruning.masks import masked_layers, parameter_of


def build():
    net = nn.Sequential(
        host.layer.Linear(300, 600),
        host.neuron.LIFNode(surrogate_function=host.surrogate.ATan()),
        host.layer.Linear(600, 600),
        host.neuron.LIFNode(surrogate_function=host.surrogate.ATan()),
        host.layer.Linear(600, 10),
    )
    host.functional.set_step_mode(net, "m")
    return net


def train(model, optimizer, pruner=None):
    x = torch.ones(2, 2, 300)

    def once():
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        host.functional.reset_net(model)
        if pruner is not None:
            pruner.step()

    return once


def held(model):
    """Bytes of parameters, buffers and masks; what a device would keep for the model."""
    masks = [mask._mask for _, _, mask in masked_layers(model) if mask._mask is not None]
    tensors = (*model.parameters(), *model.buffers(), *masks)
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_memory_in_each_phase():
    plain = build()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3)
    train(plain, optimizer)()
    _, base = activation_memory(train(plain, optimizer))
    weights = sum(m.weight.numel() for m in plain.modules() if hasattr(m, "in_features"))
    size = 4 * weights
    before = held(plain)

    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    (pruner, kept) = activation_memory(
        lambda: MinimaxPruner(model, budget=0.1, first=True, schedule=Schedule.one_go(0.1, 9, 9))
    )
    assert kept.saved <= 0.25 * size + 64 and kept.peak <= 1.25 * size
    assert held(model) == before  # the mask is made when it is closed

    seen = {"compress": 0, "finetune": 0}
    while not pruner.finished:
        phase = pruner.phase
        train(model, optimizer)()
        # forward, backward and optimizer need no more than those of the plain network
        _, step = activation_memory(train(model, optimizer))
        extra = step.peak - base.peak + held(model) - before
        assert extra <= (1.25 * size if phase == "compress" else weights + size)
        seen[phase] = max(seen[phase], held(model) - before)
        _, own = activation_memory(pruner.step)
        closes = phase == "compress" and pruner.phase != "compress"
        assert own.saved <= (weights if closes else 0)
        assert own.peak - own.saved + held(model) - before <= 1.25 * size
    assert seen == {"compress": 0, "finetune": weights}

    make_permanent(model)
    assert held(model) == before
    _, after = activation_memory(train(model, optimizer))
    assert after.peak <= base.peak
    assert all(parameter_of(m) is m.weight for m in model.modules() if hasattr(m, "in_features"))
