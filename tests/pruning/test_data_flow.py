"""Channels follow the data flow, and the smaller network computes what the masked one did."""

import pytest
import torch
from pruning.nets import LIF, move, narrow_sew, narrow_vgg
from torch import nn

from sj_ext import host
from sj_ext.neuron import IMPLIFNode
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, carry_over, shrink
from sj_ext.pruning.dependency import trace

layer = host.layer


def ms_resnet():
    ms = pytest.importorskip("spikingjelly.activation_based.model.ms_resnet")
    return ms.MSResNet(
        T=2, num_classes=10, base_channels=8, stem_kernel_size=3, stem_stride=1, **LIF
    )


def spikformer():
    former = pytest.importorskip("spikingjelly.activation_based.model.spikformer")
    return former.Spikformer(
        T=2, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=32,
        num_heads=4, depths=2, spiking_neuron=LIF["spiking_neuron"],
    )  # fmt: skip


class Branches(nn.Module):
    """Concatenation, a depthwise and a grouped convolution, learned potentials, a wide sum."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 12, 1, bias=False)
        self.imp = IMPLIFNode(imp_shape="channel", step_mode="s")
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.wide = nn.Conv2d(3, 12, 1)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x):
        y = torch.cat((self.left(x).relu(), self.right(x).relu()), 1)
        y = self.imp(self.point(self.norm(self.deep(y)).relu()))
        y = self.grouped(y).relu() + self.wide(x).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


IMAGE = (2, 2, 3, 32, 32)
NETWORKS = {
    "vgg": (narrow_vgg, IMAGE),
    "sew": (narrow_sew, IMAGE),
    "ms": (ms_resnet, IMAGE),
    "spikformer": (spikformer, IMAGE),
    "branches": (Branches, (2, 3, 8, 8)),
}


def pruned(name, cls=GlobalMagnitudePruner, **options):
    build, shape = NETWORKS[name]
    model, x = build(), torch.rand(shape)
    model(x)  # sizes of learned potentials
    host.functional.reset_net(model)
    options = {"budget": 0.5, "first": True, "schedule": 3, **options}
    pruner = cls(model, granularity="channel", example_input=x, **options)
    while not pruner.finished:
        move(model, 0.02)
        pruner.step()
    model.train()
    with torch.no_grad():  # statistics of the normalisation that are not those of the start
        host.functional.reset_net(model)
        model(x)
        host.functional.reset_net(model)
    return model, pruner, x


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_network_computes_the_same(name):
    model, pruner, x = pruned(name)
    small = shrink(model, x)
    assert pruner.density <= 0.5 and count(small) < 0.8 * count(model)
    model.eval()
    small.eval()
    y = torch.rand_like(x)
    host.functional.reset_net(model)
    host.functional.reset_net(small)
    want, got = model(y), small(y)
    assert want.abs().max() > 0
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.detach().abs().max()))


@pytest.mark.parametrize("name", ["sew", "branches"])
def test_what_meets_is_cut_together(name):
    model, pruner, _ = pruned(name, MinimaxPruner, schedule=6)

    def gone(module):
        return (module.weight == 0).flatten(1).all(1)

    if name == "sew":
        blocks = model.layer3
        tied = [blocks[0].conv2, blocks[0].downsample[0], blocks[1].conv2]
        norms = [blocks[0].bn2, blocks[0].downsample[1], blocks[1].bn2]
        assert all(torch.equal(gone(tied[0]), gone(m)) for m in tied[1:])
        assert all(torch.equal(norm.weight == 0, gone(tied[0])) for norm in norms)
    else:
        both = torch.cat((gone(model.left), gone(model.right)))
        assert torch.equal(gone(model.deep), both) and torch.equal(model.norm.weight == 0, both)
        assert not model.imp.theta.flatten()[gone(model.point)].any()
    assert any(gone(m).any() for m in model.modules() if isinstance(m, nn.Conv2d))
    assert pruner.resource <= 0.5


def test_a_layer_that_is_tied_to_a_dense_one_is_silenced_alone():
    model, pruner, x = pruned("sew", first=False, budget=0.9, layers=["layer3.*.conv?"])
    small = shrink(model, x)
    assert count(small) < count(model) and pruner.resource <= 0.9
    assert len(small.layer3[0].bn2.weight) == len(model.layer3[0].bn2.weight)


def test_heads_and_outputs_stay():
    model = spikformer()
    graph = trace(model, torch.rand(IMAGE))
    free = {
        graph.atoms.place[atom][0]
        for atoms in graph.atoms.families().values()
        for atom in atoms
        if graph.atoms.place[atom] is not None and graph.atoms.place[atom][1] == 0
    }
    names = [name for name, p in model.named_parameters() if id(p) in free]
    assert names and not any("q" in n.split(".")[-2] and "qkv" in n for n in names)
    head = list(model.parameters())[-1]
    assert id(head) not in free


def test_the_optimizers_state_goes_along():
    model, _, x = pruned("branches")
    every = list(model.parameters())
    groups = [{"params": every[:4], "lr": 0.01}, {"params": every[4:]}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    host.functional.reset_net(model)
    small = shrink(model, x)
    other = carry_over(optimizer, model, small)
    assert [g["lr"] for g in other.param_groups] == [0.01, 0.1]
    for (name, p), q in zip(model.named_parameters(), small.parameters(), strict=True):
        moment = optimizer.state[p]["exp_avg"]
        assert other.state[q]["exp_avg"].shape == q.shape, name
        if p.shape == q.shape:
            assert torch.equal(other.state[q]["exp_avg"], moment)
    rows = model.left.weight.flatten(1).any(1)
    moment = optimizer.state[model.left.weight]["exp_avg"][rows]
    assert torch.equal(other.state[small.left.weight]["exp_avg"], moment)
    small(x).square().sum().backward()
    other.step()
    with pytest.raises(ValueError, match="model has not"):
        carry_over(torch.optim.SGD(Branches().parameters(), lr=0.1), model, small)


def test_without_an_example_the_first_forward_pass_is_followed():
    """All layers are declared before all normalisations."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))

        def forward(self, x):
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = norm(conv(x)).relu()
            return x.mean((2, 3))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = MinimaxPruner(model, budget=0.7, schedule=8, granularity="channel", layers=["convs.1"])
    while not pruner.finished:
        optimizer.zero_grad()
        model(torch.rand(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        pruner.step()
    cut = (model.convs[1].weight == 0).flatten(1).all(1)
    assert cut.any() and torch.equal(model.norms[1].weight == 0, cut)
    assert model.norms[0].weight.all() and model.norms[2].weight.all()
    # and so it is after a checkpoint
    fresh = Net()
    other = MinimaxPruner(fresh, budget=0.7, schedule=8, granularity="channel", layers=["convs.1"])
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(pruner.state_dict())
    move(fresh)
    other.step()
    assert torch.equal(fresh.norms[1].weight == 0, cut)
