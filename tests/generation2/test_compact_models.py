"""Networks of SpikingJelly 2.x, compact: floats in the residual stream, attention, any T."""

import pytest
import torch
from compact_nets import ATAN, distance, step, twin
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.model.ms_resnet import MSResNet
from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer
from spikingjelly.activation_based.model.spikformer import Spikformer

from sj_ext.analysis import activation_memory
from sj_ext.memory import compact


def ms_resnet(num_steps, **options):
    return MSResNet(num_steps, num_classes=5, layers=(2, 1, 1), base_channels=4, **options)


def smooth_ms_resnet(num_steps):
    """Its neurons need the stream backwards, which is rebuilt."""
    return ms_resnet(num_steps, spiking_neuron=neuron.LIFNode, detach_reset=True, **ATAN)


def spikformer(num_steps):
    return Spikformer(
        num_steps,
        img_size_h=32,
        img_size_w=32,
        num_classes=5,
        embed_dims=16,
        num_heads=2,
        depths=2,
        tau=1.5,
    )


def spike_driven(num_steps):
    return SpikeDrivenTransformer(num_steps, num_classes=5, embed_dims=16, num_heads=2, depths=2)


NETWORKS = {"MS-ResNet": ms_resnet, "Spikformer": spikformer, "spike-driven": spike_driven}
ALL = {**NETWORKS, "MS-ResNet, smooth": smooth_ms_resnet}


def built(name, num_steps):
    net = ALL[name](num_steps)
    for p in net.parameters():  # norms that start at 0 would leave most gradients 0
        if p.dim() == 1:
            torch.nn.init.uniform_(p, 0.3, 1.2)
    return net


@pytest.mark.parametrize("num_steps", [1, 4, 8])
@pytest.mark.parametrize("name", ALL)
def test_gradients_outputs_and_buffers(name, num_steps):
    net, x = built(name, num_steps).double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    theirs = step(twin(net), x)
    for slices, keep in ((1, "bits"), (2, "bits"), (2, "inputs")):
        small = twin(net)
        ours = step(compact(small, x, slices=slices, keep=keep), x)
        assert (ours[0] - theirs[0]).abs().max() <= 1e-12 * theirs[0].abs().max()
        assert distance(ours[1], theirs[1]) <= 1e-12
        assert distance(ours[2], theirs[2]) <= 1e-12


@pytest.mark.parametrize("name", ALL)
def test_float32_within_1e_5_of_the_whole_gradient(name):
    net, x = built(name, 4), torch.rand(2, 3, 32, 32)
    theirs, ours = step(twin(net), x), step(compact(net, x), x)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-6)
    assert distance(ours[1], theirs[1]) <= 1e-5
    assert distance(ours[2], theirs[2]) <= 1e-6


def test_what_becomes_one_function():
    """A stem and its blocks; the attentions of a transformer stand between its sums."""
    for name, blocks in (("MS-ResNet", [5]), ("spike-driven", [5, 1, 1])):
        found = compact(ALL[name](1), torch.rand(1, 3, 32, 32)).compaction
        assert [len(trunk.blocks) for trunk in found.trunks] == blocks


@pytest.mark.parametrize("name", NETWORKS)
def test_every_neuron_and_every_convolution_is_in_a_segment(name):
    net = NETWORKS[name](2)
    found = compact(net, torch.rand(2, 3, 32, 32)).compaction
    assert not found.left_out
    inside = {module for names in found.segments for module in names}
    for part, module in net.named_modules():
        if type(module).__name__ in ("LIFNode", "Conv2d", "Conv1d"):
            assert any(part == one or part.startswith(f"{one}.") for one in inside), part


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tenth_of_the_bytes_is_held(name):
    net, x = NETWORKS[name](4), torch.rand(8, 3, 32, 32)

    def held(model):
        def forward():
            return step_forward(model, x)

        return activation_memory(forward)[1].saved

    def step_forward(model, x):
        for module in model.modules():
            if hasattr(module, "reset"):
                module.reset()
        return model(x).square().sum()

    share = {"MS-ResNet": 0.1, "Spikformer": 0.1, "spike-driven": 0.1}[name]
    assert held(compact(twin(net), x[:2], slices=8)) <= share * held(net)
