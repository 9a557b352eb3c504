"""A pruned layer stays a plain layer, whatever walks over it."""

import copy
import io
import pickle

import pytest
import torch
from pruning.nets import mlp, move, narrow_vgg, spiking_mlp
from safetensors.torch import load, save
from torch import nn

from sj_ext.pruning import MinimaxPruner, make_permanent
from sj_ext.pruning.masks import masked_layers


def pruner_in(phase, model, **options):
    pruner = MinimaxPruner(model, **{"budget": 0.4, "schedule": 20, "first": True, **options})
    while pruner.phase != phase:
        move(model)
        pruner.step()
    return pruner


PHASES = ("compress", "finetune", "finished")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("build", [mlp, spiking_mlp, narrow_vgg])
def test_names_order_classes_and_state_are_those_of_the_plain_network(build, granularity, phase):
    plain, model = build(), build()
    pruner = pruner_in(phase, model, granularity=granularity)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in plain.named_buffers()]
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in model.state_dict().values())
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    if phase == "finished":
        make_permanent(model)
        kept = [set(vars(m)) for m in model.modules()]
        assert kept == [set(vars(m)) for m in plain.modules()]
        assert all(not p._backward_hooks for p in model.parameters())
        assert pruner.finished


@pytest.mark.parametrize("phase", PHASES)
def test_a_whole_model_is_saved_without_a_trace(phase):
    model = mlp()
    pruner_in(phase, model)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"sj_ext" not in file.getvalue()
    file.seek(0)
    for again in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(),
                                                     strict=True))  # fmt: skip
        assert not list(masked_layers(again))
        MinimaxPruner(again, budget=0.5)  # it can be pruned anew


def test_safetensors_and_averaging_loops_over_the_state():
    model = mlp()
    pruner_in("finetune", model)
    mlp().load_state_dict(load(save(model.state_dict())))
    average = copy.deepcopy(model)
    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            a.copy_(0.9 * a + 0.1 * b)


def test_fusion_tracing_and_quantisation_see_plain_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 36, 4)).eval()  # fmt: skip
    pruner_in("finished", model)
    x = torch.rand(2, 3, 8, 8)
    want = model(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), want)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), want)
    fused = nn.utils.fuse_conv_bn_eval(model[0], model[1])
    assert torch.equal(fused.weight == 0, model[0].weight == 0)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    weight = quantised[4].weight()
    assert torch.equal(weight.dequantize() == 0, (model[4].weight == 0) | (weight.int_repr() == 0))


@pytest.mark.parametrize("phase", ["compress", "finetune"])
def test_a_copy_has_masks_of_its_own_and_an_open_one_follows(phase):
    model = mlp()
    pruner = pruner_in(phase, model)
    twin = copy.deepcopy(model)
    while not pruner.finished:
        move(model)
        pruner.step()
    want = [m.weight == 0 for m in model[::2]]
    if phase == "compress":  # nothing was held in the copy yet: it gets what the original has
        move(twin)
    make_permanent(twin)
    assert all(torch.equal(m.weight == 0, w) for m, w in zip(twin[::2], want, strict=True))
