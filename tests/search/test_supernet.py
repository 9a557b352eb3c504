"""The one-shot supernet, super-kernels, scores and costs: each against a plain computation."""

import copy
import random

import numpy
import pytest
import torch
from torch import nn

from sj_ext import host
from sj_ext.search import (
    OneShot,
    Slot,
    SuperKernel,
    autosnn,
    autost,
    branchless,
    cost,
    score,
    snasnet,
)
from sj_ext.search.network import autosnn as networks
from sj_ext.search.network import autost as formulas
from sj_ext.search.network import snasnet as snasnets
from sj_ext.search.network.branchless import Branchless
from sj_ext.search.space.autosnn import MACROS
from sj_ext.search.space.autost import Candidate
from sj_ext.search.space.snasnet import genes_of
from sj_ext.search.superkernel import same_padding

SIZES = networks.Sizes(
    channels=(4, 4, 6), strides=(1, 2, 1), stem=4, image_size=8, T=2, num_classes=3
)
SPACE = autosnn(slots=(False, True, False))


def small_supernet():
    return networks.supernet((False, True, False), SIZES)


def small_snasnet(**arguments):
    rows = ([0, 3, 0, 2], [0, 0, 3, 0], [3, 0, 0, 3], [0, 0, 0, 0])
    architecture = snasnet("backward").architecture(*genes_of(rows))
    sizes = {"channels": 4, "image_size": 8, "hidden": 8, "cluster": 2}
    return snasnets.SNASNet(architecture, 3, 2, **sizes, **arguments)


# ---- one shot ------------------------------------------------------------------------------------


def test_a_path_is_its_child_network():
    net, rng = small_supernet(), random.Random(1)
    x = torch.rand(4, 3, 8, 8)
    for _ in range(4):
        architecture = net.sample_path(SPACE, rng)
        net.train()(x)
        host.functional.reset_net(net)
        child = networks.child(architecture, SIZES)
        child.load_state_dict(net.child_state())
        assert torch.equal(child.eval()(x), net.eval()(x))
        assert sum(p.numel() for p in child.parameters()) < sum(p.numel() for p in net.parameters())


def test_nothing_of_one_path_is_left_for_the_next():
    net = small_supernet().eval()
    x = torch.rand(2, 3, 8, 8) * 3
    first, second = SPACE.architecture("srb3", "srb5"), SPACE.architecture("scb3", "skip")
    net.activate(SPACE, first)
    alone = net(x)
    net.activate(SPACE, second)
    net(x)
    net.activate(SPACE, first)
    assert torch.equal(net(x), alone)


def test_only_the_path_is_trained():
    net = small_supernet()
    net.activate(SPACE, SPACE.architecture("srb3", "scb3"))
    net(torch.rand(4, 3, 8, 8) * 3).sum().backward()
    for slot, active in zip(net.slots(), ("srb3", "scb3"), strict=True):
        for name, candidate in zip(slot.names, slot.candidates, strict=True):
            assert all((p.grad is None) == (name != active) for p in candidate.parameters())


def test_recalibrated_statistics_are_the_means_over_the_batches():
    net = OneShot(nn.Sequential(nn.BatchNorm2d(2), Slot({"a": nn.Identity(), "b": nn.ReLU()})))
    batches = [torch.randn(6, 2, 3, 3) * 2 + 1 for _ in range(3)]
    net.train()(torch.randn(5, 2, 3, 3) - 9)
    net.eval()
    net.recalibrate(batches)
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(net.model[0].running_mean, means)
    assert not net.training and net.model[0].momentum == 0.1
    with pytest.raises(ValueError, match="batches"):
        net.recalibrate([])


def test_counts_of_parameters_are_those_of_the_public_programs():
    space = autosnn()
    architecture = space.architecture("srb5", "srb5", "skip", "srb3", "srb5")
    with torch.device("meta"):
        assert cost.parameters(networks.supernet(MACROS["max_pooling"])) == 1_367_868
        for width, count in ((16, 417_626), (32, 1_462_954), (64, 5_436_746), (128, 20_916_874)):
            assert cost.parameters(networks.child(architecture, networks.Sizes(width))) == count
        assert cost.parameters(Branchless()) == 48_284_527
        rows = ("0303 0030 2002 0200", "0302 0030 3003 0000")
        for text, data, pool, count in zip(
            rows, ("cifar10", "cifar100"), (4, 2), (19_520_356, 20_624_500), strict=True
        ):
            matrix = [[int(c) for c in row] for row in text.split()]
            found = snasnet("backward").architecture(*genes_of(matrix))
            assert cost.parameters(snasnets.child(found, data, pool=pool)) == count
    corners = [
        (1, 192, 3, 943_814),
        (10, 384, 5, 22_999_133),
        (2, 256, 3, 2_327_957),
        (12, 512, 5, 48_188_155),
        (4, 384, 3, 8_175_155),
        (15, 768, 6, 150_814_000),
    ]
    for depth, width, ratio, count in corners:
        candidate = Candidate((ratio,) * depth, (4,) * depth, width)
        assert formulas.parameters(candidate) == count


def test_a_supernet_of_another_space_is_refused():
    net = small_supernet()
    with pytest.raises(ValueError, match="not this supernet's"):
        net.activate(autosnn(), autosnn().from_index(3))
    with pytest.raises(TypeError, match=r"random\.Random"):
        net.sample_path(SPACE, None)
    with pytest.raises(ValueError, match="at least one Slot"):
        OneShot(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="candidates"):
        Slot({})
    with pytest.raises(ValueError, match="name"):
        net.slots()[0].activate("srb9")
    with pytest.raises(ValueError, match="slots"):
        networks.child(autosnn().from_index(0), SIZES)


# ---- super-kernels -------------------------------------------------------------------------------


@pytest.mark.parametrize(("t3", "t5", "name"), [(0, 0, "conv5"), (0, 99, "conv3"), (99, 0, "skip")])
def test_thresholds_cut_the_kernel(t3, t5, name):
    kernel = SuperKernel(3, 4)
    with torch.no_grad():
        kernel.t3.fill_(t3)
        kernel.t5.fill_(t5)
    assert kernel.decode() == name
    x = torch.randn(2, 3, 6, 6)
    weight = kernel.weight.detach()
    wanted = {
        "conv5": lambda: nn.functional.conv2d(x, weight, padding=2),
        "conv3": lambda: nn.functional.conv2d(x, weight[:, :, 1:4, 1:4], padding=1),
        "skip": lambda: torch.zeros(2, 4, 6, 6),
    }[name]()
    torch.testing.assert_close(kernel(x), wanted)
    assert float(kernel.kernel()[1]) == {"conv5": 5, "conv3": 3, "skip": 0}[name]


def test_thresholds_learn_through_a_logistic_gradient():
    kernel = SuperKernel(2, 2).double()
    with torch.no_grad():
        kernel.t3.fill_(0.1)
    kernel.kernel()[1].sum().backward()
    inner, ring = (part.norm().item() for part in kernel.parts())
    slope = torch.tensor([inner - kernel.t3.item(), ring - kernel.t5.item()]).sigmoid()
    slope = slope * (1 - slope)
    d5 = float(ring >= kernel.t5.item())
    assert kernel.t3.grad.item() == pytest.approx(-slope[0].item() * (3 + 2 * d5))
    assert kernel.t5.grad.item() == pytest.approx(-slope[1].item() * 2)


def test_indicators_are_dropped_in_training_only_and_not_scaled():
    kernel = SuperKernel(2, 2, dropout=0.5)
    with torch.no_grad():
        kernel.t3.fill_(0)
        kernel.t5.fill_(0)
    sizes = {float(kernel.kernel()[1]) for _ in range(60)}
    assert sizes == {0.0, 3.0, 5.0}
    kernel.eval()
    assert {float(kernel.kernel()[1]) for _ in range(20)} == {5.0}


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 5, 2), (8, 3, 2), (7, 5, 2), (6, 5, 1)])
def test_padding_is_that_of_same(size, kernel, stride):
    padded = same_padding(torch.ones(1, 1, size, size), kernel, stride)
    total = padded.shape[-1] - size
    before = int((padded[0, 0].sum(1) == 0).int().cumprod(0).sum())
    assert before == total // 2
    assert (padded.shape[-1] - kernel) // stride + 1 == -(-size // stride)


def test_a_block_whose_head_is_cut_keeps_its_shortcut():
    net = Branchless(3, 2, stem=3, first=4, widths=(4,), blocks=2, head=5).eval()
    block = net.blocks[2]
    x = torch.randint(0, 3, (2, 4, 6, 6)).float()
    tail, whole = block.tail_neuron, block(x)
    host.functional.reset_net(net)
    with torch.no_grad():
        block.head.t3.fill_(99)
        cut = block(x)
        host.functional.reset_net(net)
        kernel, _ = block.tail.kernel()
        wanted = x + tail(block.tail_bn(block.tail.convolved(x, kernel)))
        host.functional.reset_net(net)
        assert torch.equal(cut, wanted) and block.skip and whole.shape == cut.shape
        block.tail.t3.fill_(99)
        assert torch.equal(block(x), x)


def test_a_decoded_network_computes_what_the_supernet_does():
    net = Branchless(3, 2, stem=3, first=4, widths=(4, 6), blocks=2, head=5).eval()
    with torch.no_grad():
        for i, block in enumerate(net.blocks[1:]):
            block.head.t5.fill_(99 if i % 2 else 0)
            block.tail.t3.fill_(99 if i == 1 else 0)
            if block.head.skippable:
                block.head.t3.fill_(99 if i == 3 else 0)
    architecture = net.decode()
    child = Branchless(
        3, 2, stem=3, first=4, widths=(4, 6), blocks=2, head=5, architecture=architecture
    ).eval()
    state = net.state_dict()
    for name, value in child.state_dict().items():
        wanted = state[name]
        if wanted.shape != value.shape:  # a 3 x 3 kernel out of a 5 x 5 one
            wanted = wanted[:, :, 1:4, 1:4]
        state[name] = wanted
    child.load_state_dict(state, strict=False)
    x = torch.rand(2, 3, 8, 8)
    ours, operations = child.counted(x)
    theirs, wanted = net.counted(x)
    torch.testing.assert_close(ours, theirs)
    assert "skip" in architecture.genes and operations <= wanted


# ---- scores --------------------------------------------------------------------------------------


def test_the_score_against_a_plain_loop():
    net = small_snasnet(dropout=0.0)
    batch, patterns = torch.randn(6, 3, 8, 8), []
    twin = copy.deepcopy(net).train()
    for node in twin.modules():
        if isinstance(node, host.neuron.BaseNode):
            node.register_forward_hook(lambda m, x, y: patterns.append(y.flatten(1).numpy() > 0))
    with torch.no_grad():
        twin(batch)
    plain, aware = numpy.zeros((6, 6)), numpy.zeros((6, 6))
    for fired in patterns:
        n, rate = fired.shape[1], fired.mean(1)
        for i in range(6):
            for j in range(6):
                distance = (fired[i] ^ fired[j]).sum()
                chance = n * (rate[i] * (1 - rate[j]) + (1 - rate[i]) * rate[j])
                plain[i, j] += n - distance
                aware[i, j] += n - 0.5 * distance / (chance + 1e-3)
    assert score.hamming(net, batch) == pytest.approx(numpy.linalg.slogdet(plain)[1], abs=1e-8)
    wanted = numpy.linalg.slogdet(aware / len(patterns))[1]
    assert score.spike_patterns(net, batch) == pytest.approx(wanted, abs=1e-8)
    assert score.spike_patterns(net, batch, reduce="sum") == pytest.approx(
        numpy.linalg.slogdet(aware)[1], abs=1e-8
    )


def test_scoring_leaves_no_trace_and_does_not_depend_on_what_was_before():
    net = small_snasnet(dropout=0.5).eval()
    state = copy.deepcopy(net.state_dict())
    a, b = torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    first = score.spike_patterns(net, a)
    score.spike_patterns(net, b)
    assert score.spike_patterns(net, a) == first  # neither potentials nor dropout are in it
    assert not net.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_autost_counts_attention_on_request():
    candidate = Candidate((3,), (4,), 64)
    without = formulas.operations(candidate)
    assert formulas.operations(candidate, attention=True) - without == 2 * 4 * 64**2 * 64
    assert score.autost_score(candidate) == without / 1e9
    with pytest.raises(ValueError, match="heads"):
        formulas.parameters(Candidate((3, 3), (4,), 64))
    with pytest.raises(ValueError, match="divide"):
        formulas.parameters(Candidate((3,), (7,), 64))
    assert autost("tiny").sample(random.Random(0)).space == "autost/tiny"


def test_nothing_that_fires_has_no_score():
    with pytest.raises(ValueError, match="neurons"):
        score.hamming(nn.Linear(2, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match="reduce"):
        score.hamming(small_snasnet(), torch.randn(3, 3, 8, 8), reduce="max")


# ---- costs ---------------------------------------------------------------------------------------


class Sums(nn.Module):
    """A convolution that reads sums of spikes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)

    def forward(self, x):
        return self.conv(x)


def test_events_and_nonzero_inputs():
    net, x = Sums(), torch.randint(0, 3, (4, 2, 5, 5)).float()
    reach = nn.functional.conv2d(x, torch.ones(3, 2, 3, 3), padding=1)
    assert cost.synops(net, x) == pytest.approx(float(reach.sum()) / 4)
    reach = nn.functional.conv2d((x > 0).float(), torch.ones(3, 2, 3, 3), padding=1)
    assert cost.synops(net, x, weighting="nonzero") == pytest.approx(float(reach.sum()) / 4)
    assert cost.synops(net, x + 0.5) == 0
    assert cost.flops(net, x) == 3 * 25 * 18
    assert cost.parameters(net) == 54
    with pytest.raises(ValueError, match="weighting"):
        cost.synops(net, x, weighting="rate")


def test_spikes_are_counted_where_they_are_fired():
    net = networks.child(SPACE.architecture("srb3", "skip"), SIZES)
    x, fired, pooled = torch.rand(2, 3, 8, 8) * 4, [], []
    for module in net.modules():
        if isinstance(module, host.neuron.BaseNode):
            module.register_forward_hook(lambda m, x, y: fired.append(float(y.sum())))
        elif isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda m, x, y: pooled.append(float(y.sum())))
    assert cost.spikes(net, x) == sum(fired) / 2
    fired.clear(), pooled.clear()
    assert cost.spikes(net, x, include_pooling=True) == (sum(fired) + sum(pooled)) / 2
    assert cost.energy(net, x) > 0


def test_a_cost_of_a_sequence_is_that_of_a_sample_over_all_steps():
    """``[T, N, *]``: what N samples cost together, divided by N and not by T."""
    net = nn.Sequential(
        host.layer.Conv2d(2, 3, 3, padding=1, bias=False),
        host.neuron.IFNode(),
        host.layer.Flatten(),
    )
    host.functional.set_step_mode(net, "m")
    T, N = 5, 3
    x = torch.randint(0, 2, (T, N, 2, 5, 5)).float()
    fired = []
    net[1].register_forward_hook(lambda m, x, y: fired.append(float(y.sum())))
    assert cost.flops(net, x) == T * 3 * 25 * 18
    reach = nn.functional.conv2d(x.flatten(0, 1), torch.ones(3, 2, 3, 3), padding=1)
    assert cost.synops(net, x) == pytest.approx(float(reach.sum()) / N)
    assert cost.synops(net, x, samples=1) == pytest.approx(float(reach.sum()))
    assert cost.energy(net, x) == pytest.approx(0.9 * float(reach.sum()) / N)
    fired.clear()
    assert cost.spikes(net, x) == pytest.approx(sum(fired) / N)
    alone = [cost.flops(net, x[:, n : n + 1]) for n in range(N)]
    assert alone == [cost.flops(net, x)] * N
    with pytest.raises(ValueError, match="samples"):
        cost.spikes(net, x, samples=0)


def test_the_penalty_reaches_what_it_counts():
    net = Branchless(3, 2, stem=3, first=4, widths=(4,), blocks=2, head=5)
    _, operations = net.counted(torch.rand(2, 3, 8, 8) * 3)
    cost.synops_penalty(operations, 2).backward()
    assert net.blocks[1].head.t5.grad is not None and net.stem.weight.grad is not None
    assert branchless(1, 2).valid(net.decode())
    with pytest.raises(ValueError, match="samples"):
        cost.synops_penalty(operations, 0)
