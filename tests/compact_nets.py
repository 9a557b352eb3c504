"""Networks for the tests of compact, and a training step to compare them by."""

import copy

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from torch import nn

from sj_ext.surrogate import Rect

ATAN = {"surrogate_function": surrogate.ATan()}


def sew_resnet18(num_classes=10, **arguments):
    net = sew_resnet.sew_resnet18(
        cnf="ADD",
        spiking_neuron=neuron.LIFNode,
        num_classes=num_classes,
        **{"detach_reset": True, **ATAN, **arguments},
    )
    functional.set_step_mode(net, "m")
    return net


def vgg11():
    """Spiking VGG-11 with the host's dropout, its classifier narrow."""
    net = spiking_vgg.spiking_vgg11_bn(spiking_neuron=neuron.IFNode, num_classes=10, **ATAN)
    net.avgpool = layer.AdaptiveAvgPool2d((1, 1))
    net.classifier[0] = layer.Linear(512, 64)
    net.classifier[3] = layer.Linear(64, 64)
    net.classifier[6] = layer.Linear(64, 10)
    functional.set_step_mode(net, "m")
    return net


class Small(nn.Module):
    """Convolution, norm, neuron, pooling; a residual sum; a linear neuron; a head."""

    def __init__(self, node=None, norm=layer.BatchNorm2d):
        super().__init__()
        node = node or (lambda: neuron.LIFNode(detach_reset=True, **ATAN))
        self.conv1, self.bn1, self.sn1 = layer.Conv2d(2, 6, 3, padding=1), norm(6), node()
        self.pool = layer.MaxPool2d(2)
        self.conv2, self.bn2, self.sn2 = (
            layer.Conv2d(6, 6, 3, padding=1, bias=False),
            norm(6),
            node(),
        )
        self.flatten = layer.Flatten()
        self.drop = layer.Dropout(0.3)
        self.fc, self.sn3 = layer.Linear(6 * 16, 12), node()
        self.head = layer.Linear(12, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.pool(self.sn1(self.bn1(self.conv1(x))))
        x = x + self.sn2(self.bn2(self.conv2(x)))
        x = self.sn3(self.fc(self.drop(self.flatten(x))))
        return self.head(x)


def smooth():
    return neuron.LIFNode(tau=1.5, detach_reset=True, **ATAN)


def window():
    return neuron.LIFNode(tau=1.5, detach_reset=True, surrogate_function=Rect(2.0))


def conv_bn(below, channels, size=3, stride=1):
    norm = layer.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.8, 1.6)
    nn.init.uniform_(norm.bias, 0.1, 0.6)
    return [layer.Conv2d(below, channels, size, stride, size // 2, bias=False), norm]


class MembraneBlock(nn.Module):
    """Neuron, convolution and norm, twice, beside the stream or a shortcut of its own."""

    in_place = False

    def __init__(self, below, channels, node, stride=1):
        super().__init__()
        self.branch = nn.Sequential(
            node(), *conv_bn(below, channels, 3, stride), node(), *conv_bn(channels, channels)
        )
        same = below == channels and stride == 1
        change = () if same else conv_bn(below, channels, 1, stride)
        self.shortcut = nn.Sequential(*change)

    def forward(self, x):
        y, x = self.branch(x), self.shortcut(x)
        if self.in_place:
            y += x
            return y
        return y + x


class Membrane(nn.Module):
    """A stem of floats, a transition that alone reads it, blocks, another transition, a block."""

    looks = False

    def __init__(self, node=smooth, widths=(4, 6), blocks=2, stem_stride=1):
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(*conv_bn(2, first, 3, stem_stride))
        self.down1 = MembraneBlock(first, first, node, 2)
        self.blocks1 = nn.Sequential(*(MembraneBlock(first, first, node) for _ in range(blocks)))
        self.down2 = MembraneBlock(first, second, node, 2)
        self.blocks2 = MembraneBlock(second, second, node)
        self.last, self.head = node(), layer.Linear(second, 3)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.blocks1(self.down1(self.stem(x)))
        if self.looks:
            x = x * (x.mean() > -9)
        x = self.blocks2(self.down2(x))
        return self.head(self.last(x).mean((-2, -1)))


def images(num_steps=3, batch=3, side=8, dtype=torch.float64):
    return torch.rand(num_steps, batch, 2, side, side, dtype=dtype)


def events(num_steps=4, batch=5, channels=2, side=8, dtype=torch.float64):
    return torch.poisson(torch.rand(num_steps, batch, channels, side, side)).to(dtype)


def step(net, x, seed=7):
    """Output, gradients by name, and buffers of one training step; the same dropout each time."""
    functional.reset_net(net)
    net.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    y = net(x)
    torch.manual_seed(seed + 1)
    (y * torch.randn_like(y)).sum().backward()
    functional.reset_net(net)
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return y.detach(), grads, {name: b.clone() for name, b in net.named_buffers()}


def distance(ours, theirs):
    """Distance of two dicts of tensors, over the length of the second."""
    assert ours.keys() == theirs.keys()
    apart = sum((ours[k].double() - theirs[k].double()).square().sum() for k in theirs)
    length = sum(theirs[k].double().square().sum() for k in theirs)
    return float((apart / length).sqrt())


def twin(net):
    """A copy whose buffers and parameters are its own."""
    return copy.deepcopy(net)
