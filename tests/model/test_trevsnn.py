"""T-RevSNN: layout, shapes, gradients with either memory, and what it tells a user who errs."""

import copy
import inspect

import pytest
import torch
from torch import nn

from sj_ext import host, model, parameter_groups
from sj_ext.functional import sdt_cross_entropy, tet_cross_entropy
from sj_ext.model import TRevSNN, trevsnn_dvs, trevsnn_small, trevsnn_tiny

WIDTHS = (4, 6, 8, 10)


def small_net(num_steps=3, dtype=torch.float32, **kwargs) -> TRevSNN:
    """A narrow network whose scales are not 0 and whose neurons neither rest nor always fire."""
    net = TRevSNN(WIDTHS, 5, num_steps, **kwargs)
    for name, p in net.named_parameters():
        if "decays" in name:
            nn.init.uniform_(p, 0.2, 0.9)
        elif name.endswith(("gamma", "gain")):
            nn.init.normal_(p, 1.0, 0.3)
        elif p.dim() == 1:
            nn.init.normal_(p, 0.2, 0.5)
    return net.to(dtype)


def images(n=2, dtype=torch.float32):
    return torch.randn(n, 3, 32, 32, dtype=dtype)


def events(num_steps=3, n=2, dtype=torch.float32):
    return torch.randint(0, 3, (num_steps, n, 2, 16, 16)).to(dtype)


@pytest.mark.parametrize(
    "build, count",
    [
        # the counts of the paper's program, with the layout that it has
        (lambda: trevsnn_tiny(encode="repeat", norm="bn"), 17_203_856),
        (lambda: trevsnn_small(encode="repeat", norm="bn"), 32_331_312),
    ],
)
def test_parameter_counts_of_the_public_layout(build, count):
    assert sum(p.numel() for p in build().parameters()) == count


def test_parameter_count_for_events():
    assert round(sum(p.numel() for p in trevsnn_dvs().parameters()) / 1e6, 2) == 10.22


@pytest.mark.parametrize("encode", ["group", "repeat"])
@pytest.mark.parametrize("norm", ["ws", "bn"])
def test_images_train_on_every_step_and_evaluate_on_the_last(encode, norm):
    net = small_net(encode=encode, norm=norm)
    x = images()
    y_seq = net(x)
    assert y_seq.shape == (3, 2, 5)
    target = torch.tensor([1, 4])
    for loss in (tet_cross_entropy, sdt_cross_entropy):
        assert loss(net(x), target).isfinite()
    net.eval()
    assert net(x).shape == (2, 5)
    torch.testing.assert_close(net(x), net.step_logits(x)[-1])


def test_events_are_classified_after_the_last_step():
    net = small_net(events=True, norm="bn")
    x = events()
    assert net(x).shape == (1, 2, 5)
    net.eval()
    assert net(x).shape == (2, 5)
    before = lowest_key_neurons(net, x)
    x[0] = -20 * x[0]  # the first frame is still there after the last step
    assert not torch.allclose(lowest_key_neurons(net, x), before)


def test_events_may_be_classified_after_every_step():
    net = small_net(events=True, norm="bn", every_step=True)
    x = events()
    y_seq = net(x)
    assert y_seq.shape == (3, 2, 5)
    u_seq = net.potentials(x)
    torch.testing.assert_close(y_seq, torch.stack([net.head(u / 3) for u in u_seq]))
    net.eval()
    torch.testing.assert_close(net(x), net.step_logits(x)[-1])


def lowest_key_neurons(net, x):
    """Potentials of level 0 after the last step."""
    net.cell(net.encoded(x))
    potentials = net.cell.states[0]
    net.cell.reset()
    return potentials


@pytest.mark.parametrize("kwargs", [{"encode": "group"}, {"encode": "repeat", "norm": "bn"}])
def test_gradients_do_not_depend_on_the_memory(kwargs):
    net = small_net(4, torch.float64, **kwargs)
    twin = copy.deepcopy(net)
    twin.cell.memory = "autograd"
    x = images(dtype=torch.float64).requires_grad_()
    y = x.detach().clone().requires_grad_()
    target = torch.tensor([0, 3])
    for one, data in ((net, x), (twin, y)):
        tet_cross_entropy(one(data), target).backward()
    assert all(p.grad is not None for p in net.parameters())
    torch.testing.assert_close(x.grad, y.grad)
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (name, b), c in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(b, c, msg=lambda m, name=name: f"{name}: {m}")


def test_event_gradients_do_not_depend_on_the_memory():
    net = small_net(3, torch.float64, events=True, norm="bn")
    x = events(dtype=torch.float64)
    grads = []
    for memory in ("reversible", "autograd"):
        net.cell.memory = memory
        loss = tet_cross_entropy(net(x), torch.tensor([0, 3]))
        grads.append(torch.autograd.grad(loss, list(net.parameters())))
    for (name, _), a, b in zip(net.named_parameters(), *grads, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_low_precision_gradients_are_close():
    net = small_net(4, encode="repeat")
    x, target = images(8), torch.randint(5, (8,))
    flat = []
    for memory in ("reversible", "autograd"):
        net.cell.memory = memory
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = tet_cross_entropy(net(x), target)
        loss.backward()
        flat.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert (flat[0] - flat[1]).norm() <= 2e-2 * flat[1].norm()


def test_groups_go_to_their_steps():
    """With encode='group', channels of step t's group change nothing before step t."""
    net = small_net(3, encode="group").eval()
    x = images()
    with torch.no_grad():
        before, inputs = net.potentials(x), net.encoded(x)
        net.stem[1].bias[2 * WIDTHS[0] :] -= 5  # silences the last step's group
        after, changed = net.potentials(x), net.encoded(x)
    torch.testing.assert_close(after[:2], before[:2])
    torch.testing.assert_close(changed[:2], inputs[:2])
    torch.testing.assert_close(changed[2], inputs[2] - 5)


def test_one_tail_serves_all_columns():
    net = small_net()
    columns = list(net.cell.levels)
    for level in range(4):
        tails = {id(column[level].blocks[1].tail) for column in columns}
        own = {id(column[level].blocks[0].tail) for column in columns}
        assert len(tails) == 1 and len(own) == 3


def test_forward_passes_are_independent_and_leave_no_state():
    net = small_net().eval()
    x = images()
    first = net(x)
    assert torch.equal(net(x), first)
    assert all(state is None for state in net.cell.states)
    host.functional.reset_net(net)
    assert torch.equal(net(x), first)
    assert net(images(5)).shape == (5, 5)  # another batch size needs no reset


def test_step_mode_of_the_network_is_multi_step():
    net = small_net().eval()
    x = images()
    before = net(x)
    host.functional.set_step_mode(net, "m")
    torch.testing.assert_close(net(x), before)
    with pytest.raises(ValueError, match="step_mode"):
        host.functional.set_step_mode(net, "s")


def test_state_dict_and_copy_carry_everything():
    net, other = small_net(norm="bn").eval(), small_net(norm="bn").eval()
    x = images()
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_the_scale_starts_as_each_norm_wants_it():
    for norm, first, second in (("ws", 0.0, 0.0), ("bn", 1.0, None)):
        block1, block2 = TRevSNN(WIDTHS, 5, 2, norm=norm).cell.levels[1][2].blocks
        assert (block1.gamma == first).all()
        assert block2.gamma is None if second is None else (block2.gamma == second).all()


def test_no_batch_normalisation_with_ws():
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small_net(norm="ws").modules())


def test_weight_decay_leaves_decays_gains_scales_and_biases_alone():
    net = small_net()
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in g["params"]} for g in parameter_groups(net, 0.1))
    special = {n for n in names.values() if "decays" in n or n.endswith(("gain", "gamma", "bias"))}
    assert exempt == special and decayed == set(names.values()) - special


def test_no_grad_and_inference_mode():
    net = small_net()
    x = images()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not net(x).requires_grad


def test_one_step_is_allowed():
    net = small_net(1)
    assert net(images()).shape == (1, 2, 5)
    net(images()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"channels": (4, 4, 4)}, "channels must be four"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"encode": "copy"}, r"encode must be one of \('group', 'repeat'\), got 'copy'"),
        ({"norm": "ln"}, r"norm must be one of \('ws', 'bn'\), got 'ln'"),
        ({"memory": "none"}, "memory must be one of"),
        (
            {"num_steps": 3, "stem_channels": 16},
            "stem_channels must be a multiple of num_steps .* stem_channels=16, num_steps=3",
        ),
        ({"num_steps": 2, "stem_channels": 16}, "must give 4 channels .* gives 8"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    arguments = {"channels": WIDTHS, "num_classes": 5, **kwargs}
    with pytest.raises(ValueError, match=message):
        TRevSNN(**arguments)


def test_bad_input_is_named():
    net = small_net()
    with pytest.raises(ValueError, match=r"x must have shape \[N, C, H, W\] with C = 3"):
        net(torch.randn(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"multiples of 16, got \[30, 32\]"):
        net(torch.randn(2, 3, 30, 32))
    dvs = small_net(events=True)
    with pytest.raises(ValueError, match="x must have 3 steps, got 4"):
        dvs(events(4))
    with pytest.raises(ValueError, match=r"x must have shape \[T, N, C, H, W\]"):
        dvs(images())


def test_configurations_take_what_the_api_names():
    for build in (trevsnn_tiny, trevsnn_small):
        names = list(inspect.signature(build).parameters)
        first = ["num_classes", "num_steps", "kernel_size", "encode", "norm", "memory"]
        assert names == [*first, "recompute"]
    assert model.trevsnn.trevsnn_tiny is trevsnn_tiny


def test_the_dial_of_the_cell():
    net = TRevSNN((8, 8, 8, 8), 3, 2, recompute=(True, True, False, False))
    assert net.cell.recompute == (True, True, False, False)
    again = TRevSNN((8, 8, 8, 8), 3, 2)
    again.load_state_dict(net.state_dict())
    x, grads = torch.rand(2, 3, 32, 32), []
    for own in (net, again):
        own(x).square().sum().backward()
        grads.append([p.grad for p in own.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
