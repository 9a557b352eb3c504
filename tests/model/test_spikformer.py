"""Spikformer and Spikformer V2: published sizes, stems, the host's own Spikformer."""

import pytest
import torch
from small_transformers import parameters

from sj_ext import host
from sj_ext.layer import SCS, ResidualBlock
from sj_ext.model.transformer import load_published
from sj_ext.model.transformer import spikformer as family


@pytest.mark.parametrize("downsampling", ["original", "cml"])
@pytest.mark.parametrize(
    "name, arguments, count",
    [
        # the programs hold two unused LayerNorms per block besides
        ("spikformer_4_256_cifar", {}, 4_155_178),
        ("spikformer_2_384_cifar", {}, 5_765_050),
        ("spikformer_4_384_cifar", {}, 9_324_730),
        ("spikformer_4_256_cifar", {"num_classes": 100}, 4_182_404 - 4 * 4 * 256),
        ("spikformer_2_384_cifar", {"num_classes": 100}, 5_802_772 - 2 * 4 * 384),
        ("spikformer_4_384_cifar", {"num_classes": 100}, 9_365_524 - 4 * 4 * 384),
        # as many as Spikingformer of the same size: neurons and pools move, maps do not
        ("spikformer_8_384", {}, 16_816_024),
        ("spikformer_8_512", {}, 29_689_384),
        ("spikformer_8_768", {}, 66_338_632),
    ],
)
def test_published_parameter_counts(name, arguments, count, downsampling):
    build = getattr(family, name)
    assert parameters(build, downsampling=downsampling, **arguments) == count


@pytest.mark.parametrize("shortcut", ["spike", "membrane"])
@pytest.mark.parametrize(
    "name, count",
    [
        ("spikformer_v2_8_384", 29_111_272),
        ("spikformer_v2_8_512", 51_545_064),
        ("spikformer_v2_8_768", 115_508_200),
        ("spikformer_v2_12_512", 64_177_128),
        ("spikformer_v2_16_768", 172_278_760),
    ],
)
def test_published_parameter_counts_of_v2(name, count, shortcut):
    assert parameters(getattr(family, name), shortcut=shortcut) == count


def test_v2_has_no_program_to_load_weights_of():
    net = family.spikformer_v2(dim=16, depth=1)
    with pytest.raises(TypeError, match="published weights"):
        load_published(net, net.state_dict())


def test_the_stem_emits_counts_of_spikes_in_either_order():
    for downsampling in ("original", "cml"):
        stem = family.spikformer_stem(16, patch_size=4, downsampling=downsampling)
        host.functional.set_step_mode(stem, "m")
        values = set(stem(3 * torch.randn(4, 2, 3, 16, 16)).unique().tolist())
        assert values <= {0.0, 1.0, 2.0} and 1.0 in values


def test_the_orders_of_downsampling_differ_by_where_the_neuron_stands():
    orders = {}
    for downsampling in ("original", "cml"):
        stem = family.spikformer_stem(16, patch_size=16, downsampling=downsampling)
        orders[downsampling] = [list(dict(stage.named_children())) for stage in stem.stages]
    assert orders["original"] == 4 * [["project", "neuron", "pool"]]
    assert orders["cml"] == 4 * [["project", "pool", "neuron"]]


def test_iand_keeps_spikes_spikes():
    stem = SCS(3, (4, 8), residual="iand").eval()
    host.functional.set_step_mode(stem, "m")
    values = stem(3 * torch.randn(4, 2, 3, 8, 8)).unique()
    assert set(values.tolist()) <= {0.0, 1.0}
    x = torch.tensor([0.0, 1.0, 1.0])
    f = torch.tensor([1.0, 1.0, 0.0])
    block = ResidualBlock(join="iand", branch=_Constant(f))
    assert block(x).tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="residual must be 'add' with shortcut='membrane'"):
        SCS(3, (4, 8), shortcut="membrane", residual="iand")


class _Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def test_bad_input():
    with pytest.raises(ValueError, match="multiples of 16"):
        family.spikformer_v2(dim=16, depth=1)(torch.randn(2, 3, 24, 32))
    with pytest.raises(ValueError, match="residual must be"):
        family.spikformer_v2(dim=16, depth=1, residual="and")
    with pytest.raises(ValueError, match="shortcut must be"):
        family.spikformer_v2(dim=16, depth=1, shortcut="none")
    with pytest.raises(TypeError, match="qkv_bias must be"):
        family.spikformer(dim=16, depth=1, qkv_bias=1)
