"""Spikeformer: sizes, the convolutional tokenizer, inputs of another size than the embedding."""

import pytest
import torch
from small_transformers import MODELS, parameters
from torch import nn

from sj_ext import host
from sj_ext.layer import ConvTokenizer, SEWBlock
from sj_ext.layer.attention import SpaceTimeBlock
from sj_ext.model.transformer import spikeformer as family
from sj_ext.neuron import ParametricLIAFNode


@pytest.mark.parametrize(
    "name, count",
    [
        ("spikeformer_dvs_cifar10", 8_792_993),
        ("spikeformer_dvs_gesture", 9_279_900),
        ("spikeformer_imagenet", 39_320_836),
    ],
)
def test_published_parameter_counts(name, count):
    assert parameters(getattr(family, name)) == count


def test_the_tokenizer_alone_for_imagenet():
    with torch.device("meta"):
        net = family.spikeformer_imagenet()
    assert sum(p.numel() for p in net.stem.parameters()) == 11_132_180
    assert net.body.embedding.position.shape == (1, 196, 512)
    assert {type(m) for m in net.modules() if isinstance(m, host.neuron.BaseNode)} == {
        ParametricLIAFNode
    }


def test_it_has_no_step_mode_s():
    net = MODELS["spikeformer"].net()
    with pytest.raises(ValueError):
        host.functional.set_step_mode(net, "s")
    assert net.step_mode == "m" and net.stem.blocks[0].conv1.conv.step_mode == "m"


def test_other_sizes_and_steps_take_the_nearest_embedding():
    net = MODELS["spikeformer"].net().eval()
    embedding = net.body.embedding
    nn.init.normal_(embedding.time)
    z = embedding(torch.zeros(6, 2, 16, 4, 8))  # twice the steps and places that were learned
    expected = embedding.position.repeat_interleave(2, 1) + embedding.time.repeat_interleave(
        2, 1
    ).transpose(0, 1).unsqueeze(1)
    assert torch.equal(z, expected.expand(6, 2, 32, 16))


def test_drop_path_leaves_whole_samples_out_in_training_only():
    block = SpaceTimeBlock(8, 2, drop_path=0.5)
    kept = block._kept(torch.ones(3, 64, 5, 8))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert bool((kept == kept[:1, :, :1, :1]).all())
    assert torch.equal(block.eval()._kept(torch.ones(2, 2, 2, 2)), torch.ones(2, 2, 2, 2))


def test_only_the_first_block_starts_with_attention_over_time():
    net = family.spikeformer(dim=16, depth=3, strides=(2, 2), img_size=16)
    assert [bool(b.temporal_fc.weight.any()) for b in net.body.blocks] == [True, False, False]


def test_bad_input():
    stem = ConvTokenizer(3, 8, (2, 2))
    host.functional.set_step_mode(stem, "m")
    with pytest.raises(ValueError, match="stride must divide height and width"):
        stem(torch.randn(2, 1, 3, 15, 16))
    with pytest.raises(ValueError, match="even number of paired blocks"):
        ConvTokenizer(3, 8, (2, 2, 2))
    with pytest.raises(ValueError, match="dim must be a multiple of 4"):
        ConvTokenizer(3, 6, (2, 2, 2), paired=False)
    with pytest.raises(ValueError, match="img_size must be a multiple of 4"):
        family.spikeformer(dim=8, strides=(2, 2), img_size=18)
    with pytest.raises(ValueError, match="stride must be"):
        SEWBlock(3, 8, stride=0)
