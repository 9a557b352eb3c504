"""Spikingformer: published sizes, published weights, the two orders of downsampling."""

import functools
import pathlib

import numpy
import pytest
import torch
from small_transformers import parameters

from sj_ext.layer import SSA
from sj_ext.layer.spiking import lif
from sj_ext.model.transformer import load_published
from sj_ext.model.transformer import spikingformer as family

RECORDINGS = pathlib.Path(__file__).parents[1] / "published" / "recordings"


def recorded(stem):
    """The program's state dict of a recording."""
    z = numpy.load(RECORDINGS / f"{stem}.npz")
    state = {k[6:]: torch.from_numpy(z[k]) for k in z.files if k.startswith("param/")}
    return state


@pytest.mark.parametrize("downsampling", ["original", "cml"])
@pytest.mark.parametrize(
    "name, arguments, count",
    [
        # the published counts; the programs hold two unused LayerNorms per block besides
        ("spikingformer_8_384", {}, 16_816_024),
        ("spikingformer_8_512", {}, 29_689_384),
        ("spikingformer_8_768", {}, 66_338_632),
        ("spikingformer_4_256_cifar", {}, 4_152_106),
        ("spikingformer_4_256_cifar", {"num_classes": 100}, 4_175_236),
        ("spikingformer_2_384_cifar", {}, 5_762_746),
        ("spikingformer_2_384_cifar", {"num_classes": 100}, 5_797_396),
        ("spikingformer_4_384_cifar", {}, 9_320_122),
        ("spikingformer_4_384_cifar", {"num_classes": 100, "num_heads": 8}, 9_354_772),
        ("spikingformer_2_256_dvs", {}, 2_566_666),
        ("spikingformer_2_256_dvs", {"num_classes": 11, "T": 10}, 2_566_923),
    ],
)
def test_published_parameter_counts(name, arguments, count, downsampling):
    build = getattr(family, name)
    assert parameters(build, downsampling=downsampling, **arguments) == count


def test_event_frames_have_neurons_of_another_time_constant():
    with torch.device("meta"):
        for downsampling, tau in (("original", 1.5), ("cml", 1.75)):
            net = family.spikingformer_2_256_dvs(downsampling=downsampling)
            assert {m.tau for m in net.modules() if hasattr(m, "tau")} == {tau}
        net = family.spikingformer_8_384()
        assert {m.tau for m in net.modules() if hasattr(m, "tau")} == {2.0}


small = functools.partial(
    family.spikingformer, 10, 4, dim=32, depth=1, num_heads=2, mlp_ratio=2, patch_size=4
)


def test_a_checkpoint_loads_and_names_what_the_program_never_uses():
    state = recorded("spikingformer_model_cifar")
    net = small()
    norms = [f"block.0.norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    assert load_published(net, {"model": {f"module.{k}": v for k, v in state.items()}}) == norms
    assert torch.equal(
        net.body[0].attn.q.conv.weight.flatten(1), state["block.0.attn.q_conv.weight"].flatten(1)
    )


def test_a_checkpoint_of_another_variant_is_refused():
    state = recorded("spikingformer_model_cifar")
    net = small(downsampling="cml")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(
        ValueError, match="this variant of Spikingformer-CML for CIFAR.*unknown names"
    ):
        load_published(net, state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match=r"head.weight must have the shape \[7, 32\]"):
        load_published(
            family.spikingformer(7, 4, dim=32, depth=1, num_heads=2, mlp_ratio=2, patch_size=4),
            state,
        )
    with pytest.raises(ValueError, match="nothing for body.1"):
        load_published(
            family.spikingformer(10, 4, dim=32, depth=2, num_heads=2, mlp_ratio=2, patch_size=4),
            state,
        )
    with pytest.raises(TypeError, match="state_dict must"):
        load_published(small(), [1])


def test_a_tie_with_the_threshold_fires():
    """0.75 / 1.5 is 0.5 exactly: multiplying by a rounded 1 / 1.5 would miss it."""
    attention = SSA(2, 1, lif(1.5)).eval()
    node = attention.neuron_attn
    node.step_mode = "s"
    assert bool(node(torch.tensor([0.75])) == 1)


def test_sizes_that_do_not_go_together():
    with pytest.raises(ValueError, match="num_heads must divide"):
        small(num_heads=3)
    with pytest.raises(ValueError, match="dim must be a multiple of 8"):
        small(dim=20)
    with pytest.raises(ValueError, match="downsampling must be one of"):
        small(downsampling="none")
    with pytest.raises(ValueError, match="patch_size must be one of"):
        small(patch_size=8)
    with pytest.raises(ValueError, match="multiples of 4"):
        small()(torch.randn(2, 3, 18, 16))
