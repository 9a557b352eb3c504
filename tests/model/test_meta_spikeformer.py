"""Meta-SpikeFormer: sizes, the distillation head, gradients where attention is silent, fusing."""

import functools
import json
import pathlib

import pytest
import torch
from small_transformers import MODELS, parameters
from torch import nn

from sj_ext import host
from sj_ext.layer import SDSA1, RepConv, RepConvBN, SepConv, fuse
from sj_ext.model.transformer import load_published
from sj_ext.model.transformer import meta_spikeformer as family

NAMES = pathlib.Path(__file__).parents[1] / "published" / "names" / "meta_spikeformer.json"


@pytest.mark.parametrize(
    "build, arguments, count",
    [
        (family.meta_spikeformer_15m, {}, 15_112_208),
        (family.meta_spikeformer, {"widths": (64, 128, 256, 320)}, 14_103_528),
        (family.meta_spikeformer_31m, {}, 31_333_864),
        (family.meta_spikeformer_55m, {}, 55_350_248),
        (family.meta_spikeformer_55m, {"distillation": True}, 55_991_248),
        (family.meta_spikeformer, {"widths": (192, 384, 768, 960)}, 123_741_160),
    ],
)
def test_published_parameter_counts(build, arguments, count):
    assert parameters(build, **arguments) == count


def test_two_heads_give_both_logits_in_training_and_their_mean_in_evaluation():
    small = MODELS["meta_spikeformer"]
    net = small.net(distillation=True).eval()
    x = small.input()
    mean = net(x)
    parts = {}
    for name in ("linear", "distilled"):
        host.functional.reset_net(net)
        with torch.no_grad():
            features = net.features(x).mean((-2, -1))
            parts[name] = getattr(net.head, name)(net.head.neuron(features))
    torch.testing.assert_close(mean, (parts["linear"] + parts["distilled"]) / 2)
    host.functional.reset_net(net)
    y, y_distilled = net.train()(x)
    assert y.shape == y_distilled.shape == mean.shape


@pytest.mark.parametrize("T", [1, 4])
def test_gradients_are_finite_where_every_attention_is_silent(T):
    """The sizes at which the program's gradients overflow."""
    net = family.meta_spikeformer(10, T, widths=(16, 32, 64, 80))
    rates = []
    for name, module in net.named_modules():
        if name.endswith("neuron_attn"):
            module.register_forward_hook(lambda m, x, y: rates.append(float(y.detach().mean())))
    y = net(torch.randn(4, 3, 64, 64)).mean(0)
    nn.functional.cross_entropy(y, torch.arange(4)).backward()
    assert len(rates) == 8 and max(rates) < 1e-3
    norm = torch.stack([p.grad.norm() for p in net.parameters()])
    assert bool(norm.isfinite().all()) and float(norm.max()) < 1e3
    assert float(net.stem.project.conv.weight.grad.norm()) > 0


def randomized(module):
    """The module in evaluation mode and float64, with normalisations that are not fresh."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.3, 2.0)
    host.functional.set_step_mode(module, "m")
    return module.double().eval()


@pytest.mark.parametrize("kind", [RepConv, RepConvBN])
def test_a_rep_conv_is_one_convolution_in_evaluation(kind):
    rep = randomized(kind(5, 7))
    fused = fuse(rep)
    assert isinstance(fused, nn.Conv2d) and fused.weight.shape == (7, 5, 3, 3)
    x = torch.randn(3, 2, 5, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), rep(x), rtol=1e-12, atol=1e-12)


def test_a_fused_sep_conv_reads_spikes_only():
    sep = randomized(SepConv(4))
    fused = fuse(sep)
    seen = []
    for module in fused.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = 2 * torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(fused(x), sep(x), rtol=1e-12, atol=1e-12)
    assert len(seen) == 2
    assert all(set(s.unique().tolist()) <= {0.0, 1.0} for s in seen)


def test_the_border_of_a_rep_conv_follows_the_running_statistics_and_has_no_gradient():
    rep = RepConv(2, 2)
    host.functional.set_step_mode(rep, "s")
    inner = rep.inner
    nn.init.normal_(inner.bn.bias)
    nn.init.zeros_(rep.depthwise.weight)
    rep.depthwise.weight.data[:, :, 0, 0] = 1.0  # shifts the map: its first row is the border
    seen = []
    rep.depthwise.register_forward_hook(lambda m, x, y: seen.append(y))
    rep(torch.randn(3, 2, 4, 4))
    bn = inner.bn
    of_zero = bn.bias - bn.running_mean * bn.weight / (bn.running_var + bn.eps).sqrt()
    torch.testing.assert_close(seen[0][:, :, 0], of_zero.view(1, 2, 1).expand(3, 2, 4))
    (grad,) = torch.autograd.grad(seen[0][:, :, 0].sum(), bn.bias)
    assert not grad.any()


@pytest.mark.skipif(host.GENERATION == 1, reason="0.0.0.0.14 has no SpikeDrivenSelfAttention")
def test_sdsa1_is_the_hosts_spike_driven_attention():
    theirs = host.layer.SpikeDrivenSelfAttention(8, 2).eval()
    ours = SDSA1(8).eval()
    host.functional.set_step_mode(ours, "m")
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0.5)
    for name in ("q", "k", "v", "proj"):
        mine = getattr(ours, name)
        mine.conv.load_state_dict(getattr(theirs, f"{name}_conv").state_dict())
        mine.bn.load_state_dict(getattr(theirs, f"{name}_bn").state_dict())
    x = 2 * torch.randn(4, 2, 8, 3, 5)
    torch.testing.assert_close(x + ours(x), theirs(x))


def test_a_checkpoint_with_a_second_head_is_for_a_model_with_one():
    """Names and shapes of the program, without a recording's values."""
    state = {
        name: torch.randn(shape) if shape else torch.tensor(3)
        for name, shape in json.loads(NAMES.read_text()).items()
    }
    build = functools.partial(
        family.meta_spikeformer, 6, 2, widths=(4, 8, 16, 24), num_heads=2, mlp_ratio=4
    )
    net = build(distillation=True)
    assert load_published(net, {"model": state}) == []
    ours = net.state_dict()
    assert len(ours) == len(state)
    # every tensor has gone somewhere
    assert sorted(float(v.sum()) for v in ours.values()) == sorted(
        float(v.sum()) for v in state.values()
    )
    last = net.body.blocks4[1].attn.proj.rep.depthwise.weight
    assert torch.equal(last, state["block4.1.attn.proj_conv.0.body.2.0.weight"])
    with pytest.raises(ValueError, match="unknown names, first head_kd"):
        load_published(build(), state)
    with pytest.raises(ValueError, match="nothing for head.distilled"):
        load_published(build(distillation=True), {k: v for k, v in state.items() if "kd" not in k})


def test_bad_input():
    with pytest.raises(ValueError, match="widths must be 4 sizes"):
        family.meta_spikeformer(widths=(8, 8, 8))
    with pytest.raises(ValueError, match="widths must begin with an even number"):
        family.meta_spikeformer(widths=(5, 8, 8, 8))
    with pytest.raises(ValueError, match="num_heads must divide"):
        family.meta_spikeformer(widths=(4, 8, 8, 9), num_heads=8)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        SepConv(4, kernel_size=4)
    with pytest.raises(TypeError, match="distillation must be"):
        family.meta_spikeformer(widths=(4, 8, 8, 8), distillation=1)
