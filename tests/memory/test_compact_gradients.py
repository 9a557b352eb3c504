"""A compact network's outputs, gradients and buffers are those of plain autograd."""

import pytest
import torch
from compact_nets import ATAN, Small, distance, events, sew_resnet18, step, twin, vgg11
from small_transformers import MODELS
from spikingjelly.activation_based import functional, layer, neuron, surrogate

from sj_ext.memory import compact
from sj_ext.neuron import IMPIFNode, IMPLIFNode, IMPParametricLIFNode, TurnOffNode, TurnOnNode
from sj_ext.surrogate import Rect


def assert_equal(net, x, slices, tolerance=1e-12):
    """Whatever is kept."""
    theirs = step(twin(net), x)
    for keep in ("bits", "inputs"):
        ours = step(compact(twin(net), x, slices=slices, keep=keep), x)
        assert (ours[0] - theirs[0]).abs().max() <= tolerance * theirs[0].abs().max()
        assert distance(ours[1], theirs[1]) <= tolerance
        assert distance(ours[2], theirs[2]) <= tolerance


@pytest.mark.parametrize("slices", [1, 2, 3, 9])
@pytest.mark.parametrize("num_steps", [1, 4, 8])
def test_small_network(num_steps, slices):
    assert_equal(Small().double(), events(num_steps), slices)


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("build", [sew_resnet18, vgg11])
def test_networks_of_the_host_in_float64(build, slices):
    net, x = build().double(), torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    assert len(compact(net, x).compaction.segments) >= 10
    assert_equal(net, x, slices)


@pytest.mark.parametrize("slices", [1, 3])
def test_float32_within_1e_5_of_the_whole_gradient(slices):
    """In slices, a potential at the threshold may fall to the other side; then draw again."""
    for _ in range(5):
        net, x = sew_resnet18(), torch.rand(4, 3, 3, 24, 24)
        plain = twin(net)
        ours, theirs = step(compact(net, x, slices=slices), x), step(plain, x)
        if torch.allclose(ours[0], theirs[0], rtol=0, atol=1e-6):
            break
        assert slices > 1, "one slice computes the very same"
    assert distance(ours[1], theirs[1]) <= 1e-5
    assert distance(ours[2], theirs[2]) <= 1e-6


RECT, RECT2 = Rect(), Rect(2.0)
NODES = {
    "IF": lambda: neuron.IFNode(**ATAN),
    "IF soft": lambda: neuron.IFNode(v_reset=None, **ATAN),
    "IF Rect": lambda: neuron.IFNode(surrogate_function=RECT),
    "LIF": lambda: neuron.LIFNode(tau=1.5, **ATAN),
    "LIF soft, detached": lambda: neuron.LIFNode(
        v_reset=None, detach_reset=True, decay_input=False, **ATAN
    ),
    "LIF to -0.1": lambda: neuron.LIFNode(v_reset=-0.1, **ATAN),
    "LIF Rect": lambda: neuron.LIFNode(tau=1.5, surrogate_function=RECT2, detach_reset=True),
    "LIF Rect, soft": lambda: neuron.LIFNode(surrogate_function=RECT2, v_reset=None),
    "LIF Sigmoid": lambda: neuron.LIFNode(surrogate_function=surrogate.Sigmoid()),
    "PLIF": lambda: neuron.ParametricLIFNode(**ATAN),
    "PLIF Rect": lambda: neuron.ParametricLIFNode(surrogate_function=RECT, detach_reset=True),
    "IMP-IF": lambda: IMPIFNode(**ATAN),
    "IMP-LIF Rect": lambda: IMPLIFNode(surrogate_function=RECT, detach_reset=True),
    "IMP-PLIF": lambda: IMPParametricLIFNode(**ATAN),
    "turn-off": lambda: TurnOffNode(),
    "turn-on": lambda: TurnOnNode(),
    "turn-on ATan": lambda: TurnOnNode(decay_shape="channel", **ATAN),
    "EIF": lambda: neuron.EIFNode(**ATAN),
}


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", NODES)
def test_neurons(name, slices):
    """Also neurons at the start of a segment, whose input is a float."""
    net = Preactivated(NODES[name]).double()
    x = events()
    step(net, x)  # lazy parameters get their sizes
    found = compact(net, x).compaction
    assert not found.left_out
    assert {"sn1", "sn2", "last"} <= {module for names in found.segments for module in names}
    assert_equal(net, x, slices)


class Weights(torch.nn.Module):
    """Weights of many kinds: padded in other ways, transposed, last in a segment, two in a row."""

    def __init__(self):
        super().__init__()
        self.around = layer.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        self.norm, self.sn1 = layer.BatchNorm2d(4), neuron.LIFNode(**ATAN)
        self.same = layer.Conv2d(4, 4, 2, padding="same", groups=2)
        self.up, self.sn2 = layer.ConvTranspose2d(4, 3, 2, stride=2), neuron.IFNode(**ATAN)
        self.last, self.pool = layer.Conv2d(3, 3, 1), layer.MaxPool2d(2)
        self.fc, self.sn3 = layer.Linear(8, 6), neuron.LIFNode(**ATAN)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.sn2(self.up(self.same(self.sn1(self.norm(self.around(x))))))
        x = self.pool(self.last(x)).transpose(-1, -2)  # not contiguous: bias by itself
        return self.sn3(self.fc(x))


@pytest.mark.parametrize("slices", [1, 3])
def test_weights_of_many_kinds(slices):
    assert_equal(Weights().double(), events(), slices)


class Preactivated(torch.nn.Module):
    """Neurons before weights, around a stream of floats, as membrane shortcuts have it."""

    def __init__(self, node):
        super().__init__()
        self.stem, self.norm = layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6)
        self.sn1, self.conv1, self.bn1 = (
            node(),
            layer.Conv2d(6, 6, 3, padding=1),
            layer.BatchNorm2d(6),
        )
        self.sn2, self.conv2, self.bn2 = node(), layer.Conv2d(6, 6, 1), layer.BatchNorm2d(6)
        self.last, self.pool, self.head = node(), layer.AvgPool2d(2), layer.Linear(16, 3)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.bn2(self.conv2(self.sn2(self.bn1(self.conv1(self.sn1(x))))))
        return self.head(self.pool(self.last(x)).flatten(3))


def test_a_norm_without_scale_or_running_statistics_or_momentum():
    def norm(channels):
        return next(kinds)(channels)

    kinds = iter(
        [
            lambda c: layer.BatchNorm2d(c, affine=False, momentum=None),
            lambda c: layer.BatchNorm2d(c, track_running_stats=False),
        ]
    )
    assert_equal(Small(norm=norm).double(), events(), 2)


def test_a_frozen_norm_and_frozen_weights():
    net, x = Small().double(), events()
    step(net, x)
    net.bn1.eval()
    net.conv2.requires_grad_(False)
    net.bn2.weight.requires_grad_(False)
    for slices in (1, 2):
        assert_equal(twin(net), x, slices)


def test_gradient_of_the_input():
    net, x = Small().double(), torch.rand(4, 5, 2, 8, 8, dtype=torch.float64)
    grads = []
    for model in (twin(net), compact(twin(net), x, slices=2)):
        functional.reset_net(model)
        inputs = x.clone().requires_grad_()
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(model(inputs).square().sum(), inputs)[0])
    assert (grads[0] - grads[1]).abs().max() <= 1e-12 * grads[0].abs().max()


def test_a_module_used_twice_gets_both_gradients():
    class Twice(Small):
        def forward(self, x):
            x = self.pool(self.sn1(self.bn1(self.conv1(x))))
            for _ in range(2):
                x = x + self.sn2(self.bn2(self.conv2(x)))
                self.sn2.reset()
            return self.head(self.sn3(self.fc(self.flatten(x))))

    assert_equal(Twice().double(), events(), 2)


def test_a_container_of_modules_on_folded_sequences():
    class Folded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = layer.SeqToANNContainer(
                torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.MaxPool2d(2)
            )
            self.node = neuron.LIFNode(step_mode="m", **ATAN)

        def forward(self, x):
            return self.node(self.body(x)).flatten(2)

    net = Folded().double()
    assert compact(net, events()).compaction.segments == [["body", "node"]]
    for slices in (1, 5):
        assert_equal(Folded().double(), events(), slices)


@pytest.mark.parametrize("slices", [1, 2])
def test_a_strided_shortcut_and_a_still_image(slices):
    """A float that a strided 1 x 1 convolution reads, and a repeated image, are held in part."""

    class Shortcut(Preactivated):
        def __init__(self):
            super().__init__(lambda: neuron.LIFNode(**ATAN))
            self.down, self.norm2 = layer.Conv2d(6, 6, 1, 2, step_mode="m"), layer.BatchNorm2d(6)
            self.conv1.stride = (2, 2)
            self.norm2.step_mode, self.head = "m", layer.Linear(4, 3, step_mode="m")

        def forward(self, x):
            x = self.norm(self.stem(x))
            y = self.bn2(self.conv2(self.sn2(self.bn1(self.conv1(self.sn1(x))))))
            return self.head(self.pool(self.last(y + self.norm2(self.down(x)))).flatten(3))

    image = torch.rand(1, 4, 2, 8, 8, dtype=torch.float64).expand(4, -1, -1, -1, -1)
    assert_equal(Shortcut().double(), image, slices)
    assert_equal(Shortcut().double(), image.clone(), slices)


def test_a_transformer_with_a_function_of_its_own_at_an_odd_size():
    """Meta-SpikeFormer passes gradients by a silent attention in an autograd function."""
    net = MODELS["meta_spikeformer"].net().double()
    for module in net.modules():  # channels of a silent attention vary by rounding alone
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eps = 0.1
    assert_equal(net, torch.rand(3, 3, 33, 33, dtype=torch.float64), 2)
