"""Synaptic operations agree with the operation counter of SpikingJelly 2.x."""

import torch
from spikingjelly.activation_based import op_counter
from torch import nn

from sj_ext import host
from sj_ext.analysis import synaptic_operations


def test_counts_agree_with_the_hosts_counter():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        host.neuron.IFNode(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        host.neuron.IFNode(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 5, bias=False),
    ).eval()
    x = 3 * torch.randn(2, 3, 8, 8)
    ours = synaptic_operations(net, x)
    assert ours.acs > 0
    host.functional.reset_net(net)
    counter = op_counter.ACCounter()
    with torch.no_grad(), op_counter.DispatchCounterMode([counter]):
        net(x)
    aten = torch.ops.aten
    counts = counter.get_counts()["Global"]
    synaptic = (aten.convolution.default, aten.mm.default, aten.addmm.default)
    assert ours.acs == sum(counts.get(op, 0) for op in synaptic)
