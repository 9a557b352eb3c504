"""What is particular to STS-Transformer, SWformer, SGLFormer, DISTA, AutoST and linear mixers."""

import pytest
import torch
from small_transformers import MODELS, parameters
from torch import nn

from sj_ext import host
from sj_ext.layer import (
    SSA,
    STSA,
    DISTAttention,
    FrequencyMixer,
    LinearMixer,
    LocalSSA,
    SpikingMLP,
)
from sj_ext.layer.haar import haar_matrix
from sj_ext.layer.spiking import lif
from sj_ext.model.transformer import autost, sglformer, sts, swformer
from sj_ext.neuron import NegIFNode

#: (constructor, arguments, parameters of the public program without those it never uses)
COUNTS = [
    (sts.sts_transformer_2_256_gesture, {}, 1_963_633 - 396_288),
    (swformer.swformer_4_384_cifar, {}, 7_479_226),
    (swformer.swformer_4_384_cifar, {"num_classes": 100}, 7_513_876),
    (swformer.swformer_4_384_cifar, {"blocks": 16}, 7_022_458),
    (swformer.swformer_4_384_cifar, {"blocks": 16, "num_classes": 100}, 7_057_108),
    (swformer.swformer_2_384_cifar, {}, 4_842_298),
    (swformer.swformer_2_256_event, {}, 2_157_834),
    (swformer.swformer_2_256_event, {"dim": 384}, 4_841_866),
    (swformer.swformer_6_512, {}, 21_806_632),
    (swformer.swformer_8_512, {}, 27_600_424),
    (swformer.swformer_6_512, {"blocks": 4}, 18_462_760),
    (swformer.swformer_8_512, {"blocks": 4}, 23_141_928),
    (sglformer.sglformer_384_cifar, {}, 8_852_874),
    (sglformer.sglformer_384_cifar, {"num_classes": 100}, 8_887_524),
    (sglformer.sglformer_8_384, {}, 16_248_856 - 9_216),
    (sglformer.sglformer_8_384, {"variant": "ima2"}, 16_248_856 - 9_216),
    (sglformer.sglformer_8_512, {}, 28_671_016 - 12_288),
    (sglformer.sglformer_8_768, {}, 64_024_648 - 6 * 4 * 768),
    (sglformer.sglformer_256_dvs, {}, 4_066_130),
    (sglformer.sglformer_256_dvs, {"T": 16}, 4_164_434),
    (sglformer.sglformer_256_dvs, {"num_classes": 11}, 4_066_387),
    (sglformer.sglformer_256_dvs, {"num_classes": 11, "T": 16}, 4_164_691),
    (autost.autost, {"dim": 192, "num_heads": (4,), "mlp_ratios": (3,)}, 943_814),
    (autost.autost, {"dim": 384, "num_heads": (8,) * 10, "mlp_ratios": (5,) * 10}, 22_999_133),
    (autost.autost, {"dim": 256, "num_heads": (4,) * 2, "mlp_ratios": (3,) * 2}, 2_327_957),
    (autost.autost, {"dim": 512, "num_heads": (8,) * 12, "mlp_ratios": (5,) * 12}, 48_188_155),
    (autost.autost, {"dim": 384, "num_heads": (4,) * 4, "mlp_ratios": (3,) * 4}, 8_175_155),
    (autost.autost, {"dim": 768, "num_heads": (8,) * 15, "mlp_ratios": (6,) * 15}, 150_814_000),
]


@pytest.mark.parametrize(("build", "arguments", "count"), COUNTS)
def test_as_many_parameters_as_published(build, arguments, count):
    assert parameters(build, **arguments) == count


# ---- STS-Transformer -----------------------------------------------------------------------------


def stsa(**arguments):
    attention = STSA(8, 2, 4, 2, 3, lif(), **arguments)
    nn.init.normal_(attention.product.table)
    host.functional.set_step_mode(attention, "m")
    return attention.eval()


def test_attention_over_time_against_the_whole_matrix():
    product = stsa().product
    q, k, v = (torch.rand(4, 2, 8, 2, 3).round() for _ in range(3))
    tokens = [(t, h, w) for t in range(4) for h in range(2) for w in range(3)]
    flat = [
        z.flatten(-2).unflatten(2, (2, 4)).permute(1, 2, 0, 4, 3).flatten(2, 3) for z in (q, k, v)
    ]
    attention = flat[0] @ flat[1].mT
    for i, (t, h, w) in enumerate(tokens):
        for j, (s, g, u) in enumerate(tokens):
            row = ((t - s + 3) * 3 + h - g + 1) * 5 + w - u + 2
            attention[:, :, i, j] += product.table[row].detach()
            if s > t:
                attention[:, :, i, j] = 0
    wanted = 0.125 * attention @ flat[2]
    wanted = wanted.unflatten(2, (4, 6)).permute(2, 0, 1, 4, 3).reshape(4, 2, 8, 2, 3)
    torch.testing.assert_close(product(q, k, v), wanted)


def test_fewer_steps_use_the_same_bias():
    attention, x = stsa().double(), torch.rand(4, 2, 8, 2, 3).round().double()
    whole = attention(x)
    host.functional.reset_net(attention)
    assert torch.equal(attention(x[:2]), whole[:2])
    assert not any(name.endswith("index") for name, _ in attention.named_buffers())
    with pytest.raises(ValueError, match="T must be at most the 4 steps"):
        attention(torch.rand(5, 2, 8, 2, 3).double())
    host.functional.reset_net(attention)
    with pytest.raises(ValueError, match="height and width"):
        attention(torch.rand(4, 2, 8, 3, 3).double())


def test_samples_mix_in_the_published_layout_only():
    x = torch.rand(4, 2, 8, 2, 3).round()
    other = x.clone()
    other[:, 1] = 1 - other[:, 1]
    for layout, alike in ((False, True), (True, False)):
        attention, currents = stsa(published_layout=layout), []
        attention.qkv.register_forward_hook(lambda m, x, y, seen=currents: seen.append(y[:, 0]))
        for each in (x, other):
            host.functional.reset_net(attention)
            attention(each)
        assert torch.equal(*currents) == alike
    with pytest.raises(ValueError, match="published layout"):
        stsa(published_layout=True)(x[0])


def test_dropout_leaves_out_what_the_norms_of_the_mlp_read():
    mlp = SpikingMLP(64, 64, lif(), shortcut="spike", dropout=0.25)
    host.functional.set_step_mode(mlp, "m")
    seen = []
    mlp.fc2.bn.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    x = torch.ones(3, 4, 64, 4, 4)
    mlp(x)
    assert 0.2 < float((seen[0] == 0).float().mean()) < 0.3
    host.functional.reset_net(mlp)
    mlp.eval()(x)
    assert not bool((seen[1] == 0).any())
    with torch.device("meta"):
        published = sts.sts_transformer_2_256_gesture()
        plain = sts.sts_transformer_2_256_gesture(dropout=0.0)
    shares = [m.p for m in published.modules() if isinstance(m, nn.Dropout)]
    assert shares == 2 * 2 * [0.3]
    assert not any(isinstance(m, nn.Dropout) for m in plain.modules())
    with pytest.raises(ValueError, match="dropout must be"):
        sts.sts_transformer(dropout=1.0)


def test_maps_with_a_size_of_their_own_need_not_be_square():
    net = sts.sts_transformer(3, 2, depth=1, dim=16, image_size=(16, 48)).eval()
    assert net(torch.rand(1, 2, 16, 48)).shape == (2, 1, 3)
    host.functional.reset_net(net)
    with pytest.raises(ValueError, match="height and width of x must be .* 1 and 3"):
        net(torch.rand(1, 2, 48, 16))
    net = sglformer.sglformer(3, 2, dim=24, num_heads=2, image_size=(8, 16)).eval()
    assert net(torch.rand(1, 3, 8, 16)).shape == (1, 1, 3)
    for build in (sts.sts_transformer, sglformer.sglformer):
        with pytest.raises(ValueError, match="image_size must be a multiple of"):
            build(image_size=(64, 30))
        with pytest.raises(ValueError, match="image_size must be one or two sizes"):
            build(image_size=(64, 64, 64))


# ---- wavelets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_haar_matrix_is_orthonormal(size):
    haar = haar_matrix(size)
    torch.testing.assert_close(haar @ haar.T, torch.eye(size))
    assert haar[0].unique().numel() == 1  # the mean
    with pytest.raises(ValueError, match="power of two"):
        haar_matrix(2 * size + 1)


def test_signed_neuron_against_a_loop():
    x_seq = 2 * torch.randn(6, 50)
    for reset in (0.0, 0.25, None):
        node, v = NegIFNode(1.0, 0.5, reset), torch.full((50,), reset or 0.0)
        for x in x_seq:
            v = v + x
            s = (v >= 1).float() - (v <= -0.501).float()
            assert torch.equal(node(x), s)
            soft = v - (s > 0).float() + 0.5 * (s < 0).float()
            v = soft if reset is None else torch.where(s == 0, v, s * reset)
    with pytest.raises(ValueError, match="neg_v_threshold"):
        NegIFNode(neg_v_threshold=0)


def test_mixers_ask_for_sizes_that_they_can_mix():
    mixer = FrequencyMixer(8, 2)
    host.functional.set_step_mode(mixer, "m")
    with pytest.raises(ValueError, match="power of two"):
        mixer(torch.rand(2, 1, 8, 6, 6))
    with pytest.raises(ValueError, match="must be equal"):
        mixer(torch.rand(2, 1, 8, 4, 8))
    with pytest.raises(ValueError, match="blocks must divide"):
        FrequencyMixer(8, 3)
    with pytest.raises(ValueError, match="power of two"):
        LinearMixer(6, "wav2d")(torch.rand(1, 6, 4, 4))
    with pytest.raises(ValueError, match="transform"):
        LinearMixer(6, "cosine")


@pytest.mark.parametrize("transform", ["fft1d", "fft2d", "wav1d", "wav2d"])
def test_linear_mixers_are_linear_and_wavelets_invert(transform):
    forward, back = LinearMixer(4, transform), LinearMixer(4, transform, inverse=True)
    a, b = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    both = forward.transformed(a + 2 * b)
    torch.testing.assert_close(both, forward.transformed(a) + 2 * forward.transformed(b))
    if transform.startswith("wav"):
        torch.testing.assert_close(back.transformed(forward.transformed(a)), a)
    else:  # the real part is taken both ways
        torch.testing.assert_close(back.transformed(a), forward.transformed(a))


# ---- SGLFormer and DISTA -------------------------------------------------------------------------


def test_local_attention_is_attention_within_each_sub_grid():
    local = LocalSSA(8, 2, shortcut="spike").eval()
    whole = SSA(8, 2, shortcut="spike").eval()
    whole.load_state_dict(local.state_dict())
    for net in (local, whole):
        host.functional.set_step_mode(net, "m")
    x = torch.rand(3, 2, 8, 4, 6).round()
    y = local(x)
    for a in range(2):
        for b in range(2):
            host.functional.reset_net(whole)
            assert torch.equal(y[..., a::2, b::2], whole(x[..., a::2, b::2]))
    with pytest.raises(ValueError, match="groups=2"):
        local(torch.rand(3, 2, 8, 3, 6))


def test_a_sample_does_not_see_its_neighbours_unless_asked_to():
    sizes = {"num_classes": 3, "T": 3, "dim": 16, "depth": 3, "num_heads": 2}
    x = torch.rand(2, 3, 32, 32)
    for mixing in (False, True):
        net = sglformer.sglformer_imagenet(**sizes, batch_mixing=mixing)
        attention = net.body.blocks[0].attn
        host.functional.set_step_mode(attention, "m")
        spikes = torch.rand(3, 2, 16, 4, 4).round()
        y = attention(spikes)
        assert y.shape == spikes.shape
        host.functional.reset_net(net)
    assert net(x).shape == (3, 2, 3)
    with pytest.raises(ValueError, match="all steps at once"):
        attention(spikes[0])


def test_the_head_of_all_tokens_and_steps_takes_no_others():
    net = MODELS["sglformer"].net()
    with pytest.raises(ValueError, match="T = 3 steps of 16 tokens"):
        net(torch.rand(2, 3, 24, 24))


def test_without_window_and_denoising_it_is_spikformers_attention():
    ours = DISTAttention(8, 2, lif(), window=1).double().eval()
    theirs = SSA(8, 2, shortcut="spike").double().eval()
    with torch.no_grad():
        for name in ("q", "k", "v"):
            getattr(theirs, name).conv.weight.copy_(getattr(ours, name).weight[0][:, :, None, None])
        theirs.proj.load_state_dict(ours.proj.state_dict())
    for net in (ours, theirs):
        host.functional.set_step_mode(net, "m")
    x = 4 * torch.rand(3, 2, 8, 2, 3, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))


def test_denoising_leaves_out_small_entries():
    q = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).view(1, 2, 1, 2)
    attention = DISTAttention(2, 1, denoise=2)
    k, v = torch.ones(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    product = attention._product(q, k, v)
    # the first token's entries are 2 each, the second one's 1 each
    assert product.flatten().tolist() == [0.5, 0.0, 0.5, 0.0]
