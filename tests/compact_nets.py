"""Networks for the tests of compact, and a training step to compare them by."""

import copy

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from torch import nn

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
