"""What the tables of trained networks share: images, networks, the training loop."""

import math
import statistics

import pytest
import torch
from benchmarks.framework import record
from benchmarks.lib import images, networks, train
from benchmarks.lib.images import Images
from benchmarks.tables import together
from torch import nn

from sj_ext import host

CONTEXT = record.Context()


def moved(image, down, right):
    """``image`` ``[C, H, W]`` moved by whole pixels, zeros where nothing was."""
    out = torch.zeros_like(image)
    height, width = image.shape[-2:]
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[:, y, x] = image[:, y - down, x - right]
    return out


def test_augmented_images_are_moved_and_flipped_originals(seed):
    x = torch.rand(12, 3, 16, 16)
    y = images.augmented(x, torch.Generator().manual_seed(seed))
    for before, after in zip(x, y, strict=True):
        candidates = [
            moved(image, down, right)
            for image in (before, before.flip(-1))
            for down in range(-2, 3)
            for right in range(-2, 3)
        ]
        assert any(torch.equal(after, candidate) for candidate in candidates)
    assert not torch.equal(x, y)


def test_the_frames_of_one_image_move_together(seed):
    x = torch.rand(6, 1, 1, 8, 8).expand(6, 5, 2, 8, 8)
    y = images.augmented(x, torch.Generator().manual_seed(seed))
    assert torch.equal(y, y[:, :1, :1].expand_as(y))


def test_images_are_standardised_and_small():
    data, test = images.load(CONTEXT, 4, 200, 50)
    assert data.x.shape == (200, 1, 4, 4)
    assert len(test.y) == 50
    torch.testing.assert_close(data.x.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x.std(), torch.tensor(1.0))
    whole = Images(torch.rand(3, 3, 8, 8), torch.zeros(3))
    torch.testing.assert_close(
        images.scaled(whole, 2).x[:, :, 1, 0], whole.x[..., 4:, :4].mean((2, 3))
    )
    assert images.scaled(whole, 12).x.shape == (3, 3, 12, 12)


def linear() -> nn.Module:
    stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    return networks.OverTime(
        stem, nn.Sequential(networks.lif(), host.layer.Linear(16, 10)), num_steps=3
    )


def trained(seed, recipe=train.Recipe(2, 1e-2), **options):  # noqa: B008
    torch.manual_seed(0)
    net = linear()
    torch.rand(seed)  # other random numbers are drawn, to no effect
    data, test = images.load(CONTEXT, 8)
    made = train.fit(net, data, train.mean_cross_entropy, recipe, seed=seed, **options)
    return net, test, made


def test_training_learns_and_depends_on_its_seed_alone():
    recipe = train.Recipe(2, 1e-2, augment=True)
    (again, *_), (same, *_) = (trained(3, recipe) for _ in range(2))
    (net, test, _), (other, *_) = (trained(seed) for seed in (3, 4))
    assert train.accuracy(net, test)[-1] > 0.5
    assert torch.equal(weights(again), weights(same))
    assert not torch.equal(weights(net), weights(other))


def weights(net):
    return torch.cat([parameter.flatten() for parameter in net.parameters()])


def test_a_pruner_steps_once_a_batch():
    class Pruner:
        steps = 0

        def step(self):
            self.steps += 1

    seen, epochs = [], []

    def make(net, optimizer, steps):
        seen.append(steps)
        return Pruner()

    recipe = train.Recipe(2, batch=100)
    _, _, pruner = trained(0, recipe, make_pruner=make, after_epoch=epochs.append)
    assert seen == [pruner.steps] == [2 * (1347 // 100)]
    assert epochs == [0, 1, 2]


def test_training_that_diverges_says_so():
    with pytest.raises(RuntimeError, match="diverged"):
        trained(0, train.Recipe(1, lr=1e30))


def test_lazy_parameters_get_shapes_and_statistics_stay():
    net = networks.sew_resnet(1, (4, 6), 2)
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    train.materialize(net, torch.rand(2, 1, 8, 8))
    for name, tensor in net.named_buffers():
        assert torch.equal(tensor, before[name])


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    "build",
    [
        lambda: networks.sew_resnet(3, (4, 6), 5, networks.integrate_and_fire, blocks=2),
        lambda: networks.vgg(3, (4, 6, 8), 5, 8),
        lambda: together.build(
            together.Variant(True, True),
            3,
            together.Size(1, 0, 0, 8, (4, 6), 5, train.Recipe(1)),
        ),
    ],
)
def test_static_networks_encode_once_and_start_from_rest(build):
    net = build().eval()
    calls = count_calls(net.stem)
    x = 30 * torch.randn(2, 3, 8, 8)
    first = net(x)
    assert first.shape == (5, 2, 10)
    assert len(calls) == 1
    assert torch.equal(net(x), first)


def test_event_networks_see_every_frame():
    net = networks.sew_resnet(2, (24, 32), None).eval()
    x = 30 * torch.randn(3, 7, 2, 8, 8)  # enough, and channels, for every layer to fire
    y = net(x)
    assert y.shape == (7, 3, 10)
    late = x.clone()
    late[:, 5:] = 0
    changed = net(late)
    assert torch.equal(changed[:5], y[:5])
    assert not torch.equal(changed[5:], y[5:])


def test_initial_potentials_of_the_reversible_chain_learn():
    size = together.Size(1, 0, 0, 8, (4, 6, 6), 3, train.Recipe(1))
    net = together.build(together.Variant(True, True), 1, size)
    x = torch.randn(4, 1, 8, 8)
    gradients = []
    for memory in ("reversible", "autograd"):
        net.cell.memory = memory
        y = net(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        gradients.append([theta.grad.clone() for theta in net.initial])
        net.zero_grad()
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


def test_means_and_errors():
    values = torch.randn(5).tolist()
    mean, error = train.mean_and_error(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert error == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    assert train.percent([0.5, 0.7]) == "60.0 ± 10.0"
    assert train.percent([0.25]) == "25.0"
    assert train.percent([0.01, 0.03], "+") == "+2.0 ± 1.0"


def test_records_name_no_folder(monkeypatch, tmp_path):
    for given in (["--data-dir", str(tmp_path)], [f"--data-dir={tmp_path}"]):
        monkeypatch.setattr("sys.argv", ["benchmarks", "compression", *given, "--size", "medium"])
        made = record.Record.open(tmp_path / "none.json", "compression", CONTEXT)
        assert str(tmp_path) not in made.command
        assert "DIR" in made.command
        assert made.command.endswith("--size medium")
