"""A compact network behaves as the network does: hooks, copies, autocast, accumulation, errors."""

import copy
import io

import pytest
import torch
from compact_nets import Small, distance, events, step, twin
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_ext.memory import compact


def grads_of(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_names_state_and_modules_are_those_of_the_network():
    net = Small()
    small = compact(net, events(dtype=torch.float32))
    assert isinstance(small, Small)
    assert [name for name, _ in small.named_modules()] == [name for name, _ in net.named_modules()]
    assert small.state_dict().keys() == net.state_dict().keys()
    assert all(p is q for p, q in zip(small.parameters(), net.parameters(), strict=True))
    assert not any("forward" in vars(module) for module in small.modules())


def test_looking_for_segments_leaves_no_trace():
    net = Small()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    net.bn1.eval()
    compact(net, torch.ones(4, 2, 2, 8, 8))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert net.training and not net.bn1.training
    assert all(not isinstance(node.v, torch.Tensor) for node in (net.sn1, net.sn2, net.sn3))


def test_the_report_names_segments_and_what_they_hold():
    found = compact(Small(), events(dtype=torch.float32), slices=3).compaction
    assert ["conv1", "bn1", "sn1", "pool"] in found.segments
    first = found.rows[0]
    # 4 steps, 5 images, 8 x 8 pixels: 2 channels go in, 6 come out
    planes = int(first.input.split()[0])
    assert first.after == 4 * 5 * 64 * (2 * planes + 6) // 8
    assert first.before == 4 * 5 * 64 * 4 * (2 + 6 + 6 + 6)
    assert first.macs == 2.0
    assert "conv1 > bn1 > sn1 > pool" in str(found) and "3 slices" in str(found)


def test_evaluation_and_no_grad_are_the_networks_own():
    net, x = Small(), events(dtype=torch.float32)
    small = compact(net, x, slices=2)
    step(net, x)
    small.eval()
    with torch.no_grad():
        functional.reset_net(net)
        ours = small(x)
        functional.reset_net(net)
        assert torch.equal(ours, net(x))
        assert isinstance(net.sn1.v, torch.Tensor)  # evaluation keeps potentials


def test_hooks_see_what_they_would_see():
    net, x = Small().double(), events()
    plain, seen = twin(net), []
    small = compact(net, x)
    for model in (plain, small):
        model.bn1.register_forward_hook(lambda module, args, y: seen.append(y.detach().clone()))
        model.conv2.weight.register_hook(lambda grad: seen.append(grad.clone()))
    theirs, ours = step(plain, x), step(small, x)
    assert distance(ours[1], theirs[1]) <= 1e-12
    assert len(seen) == 4
    torch.testing.assert_close(seen[:2], seen[2:])


def test_copies_and_pickles_are_compact_too():
    net, x = Small().double(), events()
    small = compact(net, x, slices=2)
    theirs = step(twin(net), x)
    for copied in (copy.deepcopy(small), _pickled(small)):
        assert copied.compaction.segments == small.compaction.segments
        assert copied.conv1 is not small.conv1
        ours = step(copied, x)
        assert distance(ours[1], theirs[1]) <= 1e-12
        assert all(p.grad is None for p in small.parameters())


def _pickled(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_accumulated_gradients_add_up():
    net, parts = Small().double(), [events(), events()]
    plain = twin(net)
    for model in (plain, compact(net, parts[0], slices=2)):
        for x in parts:
            functional.reset_net(model)
            torch.manual_seed(0)
            model(x).square().sum().backward()
    assert distance(grads_of(net), grads_of(plain)) <= 1e-12


def test_autocast():
    net, x = Small(), events(dtype=torch.float32)
    plain, outputs = twin(net), []
    for model, slices, keep in (
        (plain, None, None),
        (net, 1, "bits"),
        (net, 2, "bits"),
        (net, 1, "inputs"),
    ):
        functional.reset_net(model)
        model.zero_grad()
        run = model if slices is None else compact(model, x, slices=slices, keep=keep)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
        y.float().square().sum().backward()
        outputs.append((y.detach(), grads_of(model)))
    (theirs, wanted), *ours = outputs
    assert theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours[0][0], theirs, rtol=0, atol=0)
    assert distance(ours[0][1], wanted) <= 1e-5
    torch.testing.assert_close(ours[2][0], theirs, rtol=0, atol=0)
    assert distance(ours[2][1], wanted) <= 1e-5
    assert ours[1][0].dtype == torch.bfloat16
    assert all(g.isfinite().all() for g in ours[1][1].values())


def test_a_compiled_compact_network_computes_the_same():
    net, x = Small().double(), events()
    theirs = step(twin(net), x)
    ours = step(torch.compile(compact(net, x, slices=2), backend="eager"), x)
    ours = {name.removeprefix("_orig_mod."): g for name, g in ours[1].items()}
    assert distance(ours, theirs[1]) <= 1e-12


@pytest.mark.parametrize("keep", ["bits", "inputs"])
def test_autograd_grad_and_retained_graphs(keep):
    net, x = Small().double(), events()
    small = compact(net, x, keep=keep)
    functional.reset_net(small)
    loss = small(x).square().sum()
    once = torch.autograd.grad(loss, net.conv1.weight, retain_graph=True)
    again = torch.autograd.grad(loss, net.conv1.weight)
    assert torch.equal(once[0], again[0])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_double_backward_raises():
    net, x = Small().double(), events()
    loss = compact(net, x)(x).square().sum()
    (grad,) = torch.autograd.grad(loss, net.conv1.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_weights_that_change_before_the_backward_pass_raise():
    net, x = Small().double(), events()
    loss = compact(net, x)(x).square().sum()
    with torch.no_grad():
        net.conv2.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_forgotten_reset_raises():
    net, x = Small().double(), events()
    small = compact(net, x)
    small(x)
    with pytest.raises(RuntimeError, match="reset_net"):
        small(x)
    assert "reset_net" in repr(net.sn1.v)
    functional.reset_net(net)
    small(x)


def test_potentials_that_were_given_run_the_network_as_it_is():
    net, x = Small().double(), events()
    plain, results = twin(net), []
    for model in (plain, compact(net, x)):
        functional.reset_net(model)
        model.sn1.v = torch.full((5, 6, 8, 8), 0.3, dtype=torch.float64)
        torch.manual_seed(0)
        model(x).square().sum().backward()
        results.append(grads_of(model))
    assert distance(results[1], results[0]) <= 1e-12


class Branching(nn.Module):
    """Takes another path, with another use of a norm's output, when it is told to."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.sn = layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), neuron.IFNode()
        functional.set_step_mode(self, "m")
        self.twice = self.looks = False

    def forward(self, x):
        z = self.bn(self.conv(x))
        if self.looks:
            return z.mean((-2, -1)) * 2
        y = self.sn(z)
        return y + z if self.twice else y


def test_a_look_without_gradients_first():
    class Looking(Small):
        looks = False

        def forward(self, x):
            y = self.bn1(self.conv1(x))
            if self.looks:
                with torch.no_grad():
                    self.mean = y.mean()
            return self.head(self.sn3(self.fc(self.flatten(self.pool(self.sn1(y))))))

    net, x = Looking().double(), events()
    small = compact(net, x)
    net.looks = small.looks = True
    assert distance(step(small, x)[1], step(twin(net), x)[1]) <= 1e-12


def test_another_path_than_on_the_example():
    net, x = Branching().double(), events()
    small = compact(net, x)
    assert small.compaction.segments == [["conv", "bn", "sn"]]
    net.looks = small.looks = True
    plain = twin(net)
    assert distance(step(small, x)[1], step(plain, x)[1]) <= 1e-12
    small.looks, small.twice = False, True
    with pytest.raises(RuntimeError, match=r"output of bn is used a second time"):
        small(x)


class Doubled(torch.autograd.Function):
    """The same, with twice the gradient: not an operation that a subclass of tensors sees."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class WithFunction(Small):
    """Calls an autograd function where gradients are asked for."""

    on = True

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        if self.on and y.requires_grad:
            y = Doubled.apply(y)
        return self.head(self.sn3(self.fc(self.flatten(self.pool(self.sn1(y))))))


def test_an_autograd_function_that_runs_in_training_only():
    net, x = WithFunction().double(), events()
    plain, small = twin(net), compact(net, x, slices=2)
    assert ["conv1", "bn1"] in small.compaction.segments
    assert distance(step(small, x)[1], step(plain, x)[1]) <= 1e-12


def test_an_autograd_function_that_the_example_did_not_meet():
    net, x = WithFunction().double(), events()
    net.on = False
    small = compact(net, x)
    assert ["conv1", "bn1", "sn1", "pool"] in small.compaction.segments
    small.on = True
    with pytest.raises(RuntimeError, match=r"exclude=\['bn1'\]"):
        step(small, x)


def test_a_module_that_changes_its_input_is_left_out():
    class InPlace(neuron.IFNode):
        def forward(self, x):
            return super().forward(x.mul_(1.5))

    net = Small(node=InPlace)
    found = compact(net, events(dtype=torch.float32)).compaction
    assert found.left_out["sn1"] == "changes its input in place"
    assert "changes its input in place" in str(found)
    assert ["conv1", "bn1"] in found.segments
    plain, x = twin(net).double(), events()
    assert distance(step(compact(net.double(), x, slices=2), x)[1], step(plain, x)[1]) <= 1e-12


def test_modules_may_be_left_out_or_named():
    net, x = Small().double(), events()
    theirs = step(twin(net), x)
    without = compact(net, x, exclude=["conv1"])
    assert all("conv1" not in names for names in without.compaction.segments)
    named = compact(net, segments=[["conv1", "bn1", "sn1"], ["fc", "sn3"]], slices=2, keep="inputs")
    nothing = compact(net, recompute="nothing")
    for small in (without, named, nothing):
        net.bn1.reset_running_stats(), net.bn2.reset_running_stats()
        assert distance(step(small, x)[1], theirs[1]) <= 1e-12


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "model must be", {"model": 3}),
        (TypeError, "example_input", {"example_input": None}),
        (TypeError, "slices", {"slices": 2.0}),
        (ValueError, "slices must be at least 1", {"slices": 0}),
        (ValueError, "recompute", {"recompute": "all"}),
        (ValueError, "keep", {"keep": "floats"}),
        (TypeError, "exclude", {"exclude": "conv1"}),
        (ValueError, "exclude: the network has no module 'conv9'", {"exclude": ["conv9"]}),
        (ValueError, "segments: the network has no module 'x'", {"segments": [["x"]]}),
        (ValueError, "'drop'.*cannot be in a segment", {"segments": [["fc", "drop"]]}),
        (ValueError, "'conv2' cannot follow", {"segments": [["conv1", "sn1", "conv2"]]}),
        (ValueError, "stands there twice", {"segments": [["conv1"], ["conv1"]]}),
    ],
)
def test_bad_input(error, match, arguments):
    given = {"model": Small(), "example_input": events(dtype=torch.float32)} | arguments
    with pytest.raises(error, match=match):
        compact(given.pop("model"), given.pop("example_input"), **given)


def test_a_compact_network_is_not_made_compact_again():
    with pytest.raises(TypeError, match="compact already"):
        compact(compact(Small(), events(dtype=torch.float32)), events(dtype=torch.float32))


def test_a_network_that_does_not_run_on_the_example_says_where():
    with pytest.raises(RuntimeError, match=r"example_input.*conv1"):
        compact(Small(), torch.rand(4, 5, 3, 8, 8))


def test_a_network_that_resets_itself_as_it_begins():
    class Resetting(Small):
        def forward(self, x):
            functional.reset_net(self)
            return super().forward(x)

    net, x = Resetting().double(), events()
    plain, small = twin(net), compact(net, x, slices=2)
    for model in (plain, small):
        with torch.no_grad():
            model(x)  # leaves potentials behind
        for _ in range(2):
            torch.manual_seed(0)
            model(x).square().sum().backward()
    assert distance(grads_of(net), grads_of(plain)) <= 1e-12
    assert "reset_net" in repr(net.sn1.v)  # it was compact
