"""Masks survive what a training run does to a model, and leave nothing behind."""

import copy
import io

import pytest
import torch
from pruning.nets import mlp, move, spiking_mlp
from torch import nn

from sj_ext import host
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, density, make_permanent
from sj_ext.pruning.masks import close, mask_of, masked_layers, parameter_of


def pruned(build=mlp, budget=0.3, steps=1):
    model = build()
    pruner = GlobalMagnitudePruner(model, budget=budget, first=True, schedule=steps)
    move(model)
    pruner.step()
    return model, pruner


def zeros(model):
    return [weight == 0 for _, weight in weights(model)]


def weights(model):
    return [(n, m.weight.detach()) for n, m in model.named_modules() if isinstance(m, nn.Linear)]


def assert_held(model, want, x=None):
    """Zeros are where they were, in the weights and in the gradients."""
    assert all(torch.equal(a, b) for a, b in zip(zeros(model), want, strict=True))
    x = torch.rand(2, 5, 12) if x is None else x
    host.functional.reset_net(model)
    out = model(x)
    host.functional.reset_net(model)
    grads = torch.autograd.grad(out.float().square().sum(), list(parameters(model)))
    for grad, zero in zip(grads, want, strict=True):
        assert not grad[zero].any()
        assert grad[~zero].any()


def parameters(model):
    return [parameter_of(m) for m in model.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("build", [mlp, spiking_mlp])
def test_state_dicts_bring_masks_into_a_fresh_model(build):
    model, pruner = pruned(build)
    want = zeros(model)
    file = io.BytesIO()
    torch.save([model.state_dict(), pruner.state_dict()], file)
    file.seek(0)
    fresh = build()
    other = GlobalMagnitudePruner(fresh, budget=0.3, first=True, schedule=1)
    for part, state in zip((fresh, other), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert_held(fresh, want)


@pytest.mark.parametrize("build", [mlp, spiking_mlp])
def test_deepcopy_has_masks_of_its_own(build):
    model, _ = pruned(build)
    want = zeros(model)
    twin = copy.deepcopy(model)
    make_permanent(model)
    move(model)
    assert_held(twin, want)
    assert density(model) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_moves_masks_and_keeps_them_boolean(dtype):
    model, _ = pruned()
    want = zeros(model)
    model.to(dtype)
    assert all(mask.mask.dtype == torch.bool for _, _, mask in masked_layers(model))
    assert_held(model, want, torch.rand(5, 12, dtype=dtype))
    meta = copy.deepcopy(model).to("meta")
    assert all(mask.mask.device.type == "meta" for _, _, mask in masked_layers(meta))


@pytest.mark.parametrize("build", [mlp, spiking_mlp])
def test_autocast(build):
    model, _ = pruned(build)
    want = zeros(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_held(model, want)


@pytest.mark.parametrize("closed", [False, True])
def test_torch_compile_without_a_graph_break(closed):
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.4, first=True, schedule=6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.rand(5, 12)
    while pruner.phase == "compress":
        torch.testing.assert_close(compiled(x), model(x))
        move(model)
        pruner.step()
    if closed:
        want = zeros(model)
        torch.testing.assert_close(compiled(x), model(x))
        compiled(x).square().sum().backward()
        for parameter, zero in zip(parameters(model), want, strict=True):
            assert not parameter.grad[zero].any() and parameter.grad[~zero].any()


def test_open_masks_let_gradients_through_and_closed_ones_do_not():
    model = mlp()
    MinimaxPruner(model, budget=0.4, first=True)
    mask_of(model[2]).mask[:, ::2] = False
    model(torch.rand(5, 12)).square().sum().backward()
    assert parameter_of(model[2]).grad[:, ::2].any()
    close(model[2])
    model.zero_grad()
    model(torch.rand(5, 12)).square().sum().backward()
    assert not parameter_of(model[2]).grad[:, ::2].any()
    assert not model[2].weight[:, ::2].any()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
        lambda p: torch.optim.Adam([{"params": [q], "lr": 0.01} for q in p], foreach=True),
    ],
)
def test_zeros_stay_under_momentum_and_weight_decay(optimizer):
    model = mlp()
    opt = optimizer(list(model.parameters()))
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=24)
    x, target = torch.rand(16, 12), torch.randint(6, (16,))
    held = None
    for _ in range(40):  # past the end too: masks hold until they are made permanent
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        opt.step()
        phase = pruner.phase
        pruner.step()
        if phase == "finished":
            assert all(torch.equal(a, b) for a, b in zip(zeros(model), held, strict=True))
        held = zeros(model)
    assert pruner.finished


def test_the_optimizer_goes_on_with_the_same_parameters():
    model = mlp()
    before = {id(p) for p in model.parameters()}
    pruner = GlobalMagnitudePruner(model, budget=0.3, first=True, schedule=1)
    assert {id(p) for p in model.parameters()} == before
    move(model)
    pruner.step()
    keys = set(mlp().state_dict())
    make_permanent(model)
    assert {id(p) for p in model.parameters()} == before
    assert set(model.state_dict()) == keys
    assert type(model[0]) is nn.Linear and not model[0]._forward_pre_hooks


def test_make_permanent_keeps_outputs_to_the_bit():
    model, _ = pruned()
    x = torch.rand(5, 12)
    want = model(x)
    make_permanent(model)
    assert torch.equal(model(x), want)
    with pytest.raises(ValueError, match="no masked layer"):
        make_permanent(model)


def test_a_shared_weight_is_pruned_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    model = Tied()
    pruner = GlobalMagnitudePruner(model, budget=0.5, first=True, schedule=1)
    move(model)
    pruner.step()
    assert 0 <= 0.5 * (81 + 27) - pruner.kept < 1 and density(model) == pruner.density
    assert torch.equal(model.a.weight, model.b.weight)
    assert mask_of(model.a) is mask_of(model.b)
    make_permanent(model)
    assert model.a.weight is model.b.weight


@pytest.mark.parametrize(
    "make",
    [
        lambda: host.layer.Conv1d(4, 6, 3),
        lambda: host.layer.Conv2d(4, 6, 3, groups=2),
        lambda: host.layer.Conv3d(4, 6, 3),
        lambda: host.layer.ConvTranspose1d(4, 6, 3),
        lambda: host.layer.ConvTranspose2d(4, 6, 3, groups=2),
        lambda: host.layer.ConvTranspose3d(4, 6, 3),
        lambda: host.layer.Linear(4, 6),
        lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    ],
)
def test_every_kind_of_layer(make):
    module = make()
    model = nn.Sequential(module)
    dims = module.weight.dim()
    x = torch.rand(2, 4) if dims == 2 else torch.rand(2, 4, *[5] * (dims - 2))
    pruner = GlobalMagnitudePruner(model, budget=0.5, first=True, schedule=2)
    dense = parameter_of(module).detach().clone()
    move(model, 0)
    pruner.step()
    kept = module.weight.detach() != 0
    # the kept half is the larger half
    assert dense[kept].abs().min() >= dense[~kept].abs().max()
    assert 0 <= 0.5 * dense.numel() - int(kept.sum()) < 1
    model(x).sum().backward()
    assert not parameter_of(module).grad[~kept].any()
