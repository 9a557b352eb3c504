"""SpikingResformer: sizes, and dual spike attention where heads are silent or fresh."""

import pytest
import torch
from small_transformers import parameters

from sj_ext import host
from sj_ext.layer import DSSA, GWFFN
from sj_ext.model.transformer import spiking_resformer as family


@pytest.mark.parametrize(
    "name, arguments, count",
    [
        ("spiking_resformer_ti", {}, 11_180_992),
        ("spiking_resformer_s", {}, 17_813_824),
        ("spiking_resformer_m", {}, 35_601_472),
        ("spiking_resformer_l", {}, 60_375_680),
        ("spiking_resformer_cifar", {}, 10_793_152),
        ("spiking_resformer_cifar", {"num_classes": 100}, 10_827_712),
        ("spiking_resformer_dvs", {}, 2_709_830),
    ],
)
def test_published_parameter_counts(name, arguments, count):
    assert parameters(getattr(family, name), **arguments) == count


def dssa(dim=8, num_heads=2, **arguments):
    module = DSSA(dim, num_heads, **arguments)
    host.functional.set_step_mode(module, "m")
    return module


def with_a_silent_head(scale=3.0):
    """Potentials whose second half of channels never reaches the threshold."""
    x = scale * torch.randn(3, 2, 8, 4, 4)
    x[:, :, 4:] = -1.0
    return x.requires_grad_()


@pytest.mark.parametrize("silent", ["one head", "all heads"])
def test_a_silent_head_divides_nothing(silent):
    module = dssa(patch_size=2)
    x = with_a_silent_head() if silent == "one head" else torch.full((3, 2, 8, 4, 4), -1.0)
    x = x.detach().requires_grad_()
    y = module(x)
    (y * torch.randn_like(y)).sum().backward()
    assert bool(y.isfinite().all())
    for tensor in (x, *module.parameters()):
        assert bool(tensor.grad.isfinite().all())
    assert bool((module.firing_rate_x.flatten() > 0).tolist() == [silent == "one head", False])
    assert bool(module.neuron_attn.v.isfinite().all())


def test_a_fresh_module_in_evaluation_takes_each_samples_own_rate():
    fresh, told = dssa(patch_size=2).eval(), dssa(patch_size=2).eval()
    x = 3 * torch.randn(1, 1, 8, 4, 4)
    y = fresh(x)
    assert bool(y.isfinite().all()) and fresh.firing_rate_x.sum() == 0
    told.load_state_dict(fresh.state_dict())
    spikes = (x >= 2).float().unflatten(2, (2, 4))
    told.firing_rate_x.copy_(spikes.mean((0, 1, 3, 4, 5)).view(1, 1, 2, 1, 1))
    rates = []
    told.neuron_attn.register_forward_hook(lambda m, args, a: rates.append(a.mean((0, 1, 3, 4))))
    told(x)
    told.firing_rate_attn.copy_(rates[0].view(1, 1, 2, 1, 1))
    host.functional.reset_net(told)
    torch.testing.assert_close(told(x), y)


def test_rates_are_running_means_whose_first_value_is_the_first_batchs():
    module = dssa()
    x1, x2 = (3 * torch.randn(3, 2, 8, 4, 4) for _ in range(2))
    expected = None
    for x in (x1, x2):
        spikes = []
        handle = module.neuron_in.register_forward_hook(lambda m, a, s, to=spikes: to.append(s))
        module(x)
        handle.remove()
        host.functional.reset_net(module)
        rate = spikes[0].unflatten(2, (2, 4)).mean((0, 1, 3, 4, 5))
        expected = rate if expected is None else 0.999 * expected + 0.001 * rate
        torch.testing.assert_close(module.firing_rate_x.flatten(), expected)
    module.eval()(x1)
    torch.testing.assert_close(module.firing_rate_x.flatten(), expected)


def test_the_number_of_patches_follows_the_map():
    """The second factor at any size: the product of ones is the square root of the patches."""
    module = dssa(dim=1, num_heads=1, patch_size=2).eval()
    module.firing_rate_x.fill_(1.0)
    module.firing_rate_attn.fill_(0.25)
    seen = []
    module.neuron_out.register_forward_hook(lambda m, args, y: seen.append(args[0]))
    module.neuron_attn.register_forward_hook(lambda m, args, y: torch.ones_like(y))
    module.patches.register_forward_hook(lambda m, args, y: torch.ones_like(y))
    for size in (4, 8):
        module(torch.randn(1, 1, 1, size, size))
        host.functional.reset_net(module)
        n = (size // 2) ** 2
        assert torch.allclose(seen[-1], torch.tensor(n / (0.25 * n) ** 0.5))


def test_bad_input():
    with pytest.raises(ValueError, match="patch_size must divide"):
        dssa(patch_size=3)(torch.randn(2, 1, 8, 4, 4))
    with pytest.raises(ValueError, match="num_heads must divide"):
        DSSA(8, 3)
    with pytest.raises(ValueError, match="group_size must divide the 32 hidden"):
        GWFFN(8, group_size=5)
    with pytest.raises(ValueError, match="layers must have 3 entries"):
        family.spiking_resformer(layers=(("DSSA",),))
    with pytest.raises(ValueError, match="layers must be one of"):
        family.spiking_resformer(layers=(("SSA",),) * 3)
    with pytest.raises(ValueError, match="num_heads must be 3 sizes"):
        family.spiking_resformer(num_heads=(1, 2))
    with pytest.raises(ValueError, match="prologue must be one of"):
        family.spiking_resformer(prologue="cifar")
