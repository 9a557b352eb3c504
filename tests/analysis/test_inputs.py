"""What layers read, on networks whose answer the papers give."""

import pytest
import torch
from small_transformers import MODELS
from torch import nn

from sj_ext import host
from sj_ext.analysis import layer_inputs
from sj_ext.layer import fuse


def kinds(name, transform=None):
    small = MODELS[name]
    net = small.net().eval()
    report = layer_inputs(net if transform is None else transform(net), small.input())
    assert report[0].kind == "real"  # the image
    return {entry.name: entry.kind for entry in report[1:]}


def test_spikingformer_is_spike_driven_up_to_its_head():
    found = kinds("spikingformer")
    assert found.pop("head.linear") == "real"
    assert set(found.values()) == {"binary"}
    assert {"body.0.attn.product.first", "body.0.attn.product.second"} <= set(found)


def test_each_product_of_dual_spike_attention_has_spikes_on_one_side():
    found = kinds("spiking_resformer")
    products = {name: kind for name, kind in found.items() if ".product_" in name}
    assert len(products) == 4 and set(products.values()) == {"binary"}


def test_spikformers_blocks_read_sums_of_spikes():
    def fire(net):
        nn.init.constant_(net.stem.position.project.bn.bias, 9.0)  # counts of 1 and 2
        return net

    found = kinds("spikformer_cml", fire)
    assert {found[f"body.0.attn.{name}.conv"] for name in "qkv"} == {"integer"}
    assert found["body.0.attn.proj.conv"] == found["body.0.mlp.fc2.conv"] == "binary"


def test_the_last_map_of_a_sep_conv_reads_real_values_until_it_is_fused():
    found = kinds("meta_spikeformer")
    real = {name for name, kind in found.items() if kind == "real"}
    assert "body.conv1_1.sep.reduce.pointwise.conv" in real
    assert "body.conv1_1.sep.expand.conv" not in real
    found = kinds("meta_spikeformer", fuse)
    assert {name for name, kind in found.items() if kind != "binary"} <= {"head.linear"}


def test_kinds_and_rates_of_hand_made_inputs():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Identity())
    for value, kind, rate in (([1, 0, 0, 1], "binary", 0.5), ([2, 0, -1, 1], "integer", 0.75)):
        (entry,) = layer_inputs(net, torch.tensor([value]).float())
        assert entry == ("0", kind, rate)
    assert layer_inputs(net, torch.tensor([[0.5, 0, 0, 0]]))[0].kind == "real"


def test_the_network_is_left_as_it_was():
    small = MODELS["spikingformer"]
    net = small.net()
    net(small.input())
    potentials = [m.v for m in net.modules() if isinstance(m, host.neuron.BaseNode)]
    layer_inputs(net, small.input())
    after = [m.v for m in net.modules() if isinstance(m, host.neuron.BaseNode)]
    assert net.training
    assert all(a is b for a, b in zip(potentials, after, strict=True))


def test_bad_input():
    with pytest.raises(RuntimeError, match="no convolution and no linear layer"):
        layer_inputs(nn.ReLU(), torch.ones(2))
    with pytest.raises(TypeError, match="model must be"):
        layer_inputs(torch.relu, torch.ones(2))
