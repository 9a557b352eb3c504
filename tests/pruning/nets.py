"""Small networks for the tests, with SpikingJelly's layers."""

import torch
from spikingjelly.activation_based.model.sew_resnet import BasicBlock, SEWResNet
from spikingjelly.activation_based.model.spiking_vgg import SpikingVGG
from torch import nn

from sj_ext import host

BUDGETS = (0.5, 0.25, 0.1, 0.05, 0.01, 0.002)
layer = host.layer
LIF = {
    "spiking_neuron": host.neuron.LIFNode,
    "surrogate_function": host.surrogate.ATan(),
    "detach_reset": True,
}


def mlp(hidden=40, inputs=12, outputs=6):
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def spiking_mlp():
    node = host.neuron.LIFNode
    net = nn.Sequential(
        layer.Linear(12, 30),
        node(surrogate_function=host.surrogate.ATan()),
        layer.Linear(30, 30),
        node(surrogate_function=host.surrogate.ATan()),
        layer.Linear(30, 6),
    )
    for module in net[::2]:  # large enough that the neurons fire
        nn.init.normal_(module.weight, 0.3, 1.0)
    host.functional.set_step_mode(net, "m")
    return net


def narrow_vgg(width=4, batch_norm=True, classes=10):
    """The layers of the host's spiking VGG-11 with few channels, and one linear layer after."""
    cfg = [1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M"]
    features = SpikingVGG.make_layers(
        [c if c == "M" else c * width for c in cfg],
        batch_norm,
        None,
        LIF["spiking_neuron"],
        surrogate_function=LIF["surrogate_function"],
        detach_reset=True,
    )
    net = nn.Sequential(
        features,
        layer.AdaptiveAvgPool2d((2, 2)),
        layer.Flatten(),
        layer.Linear(8 * width * 4, 64),
        host.neuron.LIFNode(surrogate_function=host.surrogate.ATan()),
        layer.Linear(64, classes),
    )
    host.functional.set_step_mode(net, "m")
    return net


def narrow_sew(classes=10):
    """The host's SEW-ResNet-18 with a sixteenth of its channels in each block."""

    class Block(BasicBlock):
        expansion = 1

    class Narrow(SEWResNet):
        def _make_layer(self, block, planes, *args, **kwargs):
            return super()._make_layer(block, planes // 16, *args, **kwargs)

    net = Narrow(Block, [2, 2, 2, 2], num_classes=classes, cnf="ADD", **LIF)
    net.fc = layer.Linear(32, classes)
    host.functional.set_step_mode(net, "m")
    return net


def move(model, size=1e-3):
    """A step of training that costs nothing: every weight moves at random."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def total_weights(model):
    """Weights of all linear and convolutional layers."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, kinds))


def often_firing(net):
    """A network with attention whose queries and keys fire often enough to meet."""
    for p in net.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, 0.1, 0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.7)
    return net
