"""Networks that Torch-Pruning's tests are about: cut by channels, shrunk, and the same outputs."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sj_ext.pruning import GlobalMagnitudePruner, Taylor, density, shrink


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        y = self.a(x)
        return self.head((y + self.norm(self.b(y.relu())).relu()).mean((2, 3)))


class Concatenation(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1)
        self.c, self.head = nn.Conv2d(14, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.c(torch.cat((self.a(x).relu(), self.b(x).relu()), 1)).relu())


class Halves(nn.Module):
    """A layer whose output is split, and only one part of which goes through another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        left, right = self.a(x).relu().split(6, 1)
        return self.head(self.b(left * right).relu())


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        self.widen, self.deep = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm, self.back = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        return self.back(self.norm(self.deep(self.widen(x).relu())).relu())


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 10, 2, 2), nn.ConvTranspose2d(10, 8, 2, 2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.head(self.up(self.down(x).relu()).relu())


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.again(self.again(self.first(x).relu()).relu()).relu())


class Several(nn.Module):
    """Two inputs by name, two outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(5, 10), nn.Linear(7, 10), nn.Linear(10, 8)
        self.one, self.two = nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, left, right):
        y = self.mix((self.a(left) + self.b(right)).relu()).relu()
        return {"one": self.one(y), "two": self.two(y)}


class Bare(nn.Module):
    """A parameter of its own for each channel."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)

    def forward(self, x):
        return self.head((self.a(x).relu() * self.scale).mean((2, 3)))


def flat():
    parts = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 4))


IMAGE = torch.Size((2, 3, 8, 8))
NETWORKS = {
    "residual": (Residual, IMAGE),
    "concatenation": (Concatenation, IMAGE),
    "halves": (Halves, IMAGE),
    "depthwise": (Mobile, IMAGE),
    "transposed": (Decoder, IMAGE),
    "flattened": (flat, IMAGE),
    "used twice": (Twice, torch.Size((2, 6))),
    "bare parameter": (Bare, IMAGE),
    "several": (Several, None),
}


def prune(model, x, budget=0.6, **options):
    pruner = GlobalMagnitudePruner(
        model,
        budget=budget,
        granularity="channel",
        example_input=x,
        schedule=1,
        **{"first": True, **options},
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run(model, x).square().mean().backward()
    optimizer.step()
    pruner.step()
    assert pruner.finished and pruner.resource <= budget
    return pruner


def run(model, x):
    out = model(**x) if isinstance(x, dict) else model(x)
    return torch.cat([*out.values()], -1) if isinstance(out, dict) else out


def example(shape):
    return (
        {"left": torch.rand(2, 5), "right": torch.rand(2, 7)}
        if shape is None
        else torch.rand(shape)
    )


def assert_same(model, small, x):
    model.eval()
    small.eval()
    want = run(model, x)
    assert want.abs().max() > 0
    torch.testing.assert_close(run(small, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_shrunk_and_computes_the_same(name):
    build, shape = NETWORKS[name]
    model, x = build(), example(shape)
    prune(model, x)
    small = shrink(model, x)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    assert sizes[0] < 0.9 * sizes[1]
    assert_same(model, small, example(shape))


def test_layers_that_are_left_out_keep_their_size():
    model, x = Residual(), torch.rand(IMAGE)
    prune(model, x, 0.95, layers=["b"])
    small = shrink(model, x)
    assert small.a.weight.shape == model.a.weight.shape and small.head.weight.shape == (4, 8)
    assert_same(model, small, x)


def test_gradients_of_the_loss_choose_too():
    model, x = Mobile(), torch.rand(IMAGE)
    prune(model, x, importance=Taylor())
    assert_same(model, shrink(model, x), x)


def test_the_same_again_on_the_smaller_network():
    model, x = flat(), torch.rand(IMAGE)
    for _ in range(2):
        before = sum(p.numel() for p in model.parameters())
        prune(model, x, 0.7)
        small = shrink(model, x)
        assert_same(model, small, x)
        model = small.train()
        assert sum(p.numel() for p in model.parameters()) < before
    assert density(model) == 1


def test_the_smaller_network_is_saved_whole_and_trains():
    model, x = Residual(), torch.rand(IMAGE)
    prune(model, x)
    small = shrink(model, x)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert_same(small, other, x)
    twin = copy.deepcopy(other).train()
    F.cross_entropy(twin(x), torch.tensor([0, 1])).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert all(p.grad is not None for p in twin.parameters())
