"""Sizes that are known late: fixed by one call in every mode, and errors that name it before."""

import pytest
import torch
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.neuron import IMPLIFNode, MultiLevelFiringNode, TurnOffNode, TurnOnNode

functional, layer, neuron = host.functional, host.layer, host.neuron


def net(step_mode="m"):
    made = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        IMPLIFNode(),
        TurnOnNode(decay_shape="channel"),
        layer.Flatten(),
        layer.Dropout(0.5),
        nn.LazyLinear(3),
    )
    functional.set_step_mode(made, step_mode)
    return made


def example(step_mode="m"):
    return torch.rand(*(2, 1)[step_mode == "s" :], 2, 8, 8)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_all_sizes_are_fixed_and_nothing_else_changes(step_mode, mode):
    model = net(step_mode)
    statistics = model[1].running_mean.clone(), model[1].num_batches_tracked.clone()
    with mode():
        assert sj_ext.materialize(model, example(step_mode)) is model
    assert model[2].theta.shape == (1, 4, 1, 1) and model[3].decay.shape == (4,)
    assert model[6].weight.shape == (3, 256) and model.training
    assert model[2].v == model[3].v == 0.0
    assert torch.equal(model[1].running_mean, statistics[0])
    assert torch.equal(model[1].num_batches_tracked, statistics[1])
    model(torch.rand(*(3, 5)[step_mode == "s" :], 2, 8, 8)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.is_inference(), name


@pytest.mark.parametrize("make", [IMPLIFNode, lambda: TurnOnNode(decay_shape="channel")])
def test_a_first_forward_in_inference_mode_makes_parameters_that_learn(make):
    model = nn.Sequential(nn.Linear(4, 4), make())
    functional.set_step_mode(model, "m")
    with torch.inference_mode():
        model(torch.rand(3, 2, 4))
    functional.reset_net(model)
    model(torch.rand(3, 2, 4)).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.is_inference()


def test_swapping_with_an_example_input_fixes_the_sizes_at_once():
    model = nn.Sequential(layer.Conv2d(2, 4, 3), neuron.LIFNode())
    example_input = torch.rand(1, 2, 8, 8)
    sj_ext.swap_neurons(model, {neuron.LIFNode: IMPLIFNode}, example_input=example_input)
    assert model[1].theta.shape == (1, 4, 1, 1) and model[1].v == 0.0
    torch.optim.Adagrad(model.parameters())


@pytest.mark.parametrize(
    "use",
    [
        lambda model: sum(p.numel() for p in model.parameters()),
        lambda model: [p.shape for p in model.parameters()],
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: [p.register_hook(print) for p in model.parameters()],
        lambda model: torch.optim.Adagrad(model.parameters()),
        lambda model: model.to_empty(device="cpu"),
        lambda model: model.share_memory(),
        lambda model: torch.nn.utils.parameters_to_vector(model.parameters()),
    ],
)
@pytest.mark.parametrize("name", ["theta", "decay"])
def test_errors_before_name_the_parameter_and_the_call(use, name):
    node = IMPLIFNode() if name == "theta" else TurnOnNode(decay_shape="channel")
    model = nn.Sequential(nn.Linear(4, 4), node)
    with pytest.raises((ValueError, RuntimeError), match=f"{name} has no size.*sj_ext.materialize"):
        use(model)
    sj_ext.materialize(model, torch.rand(2, 4))
    use(model)


def test_an_input_that_does_not_reach_a_layer_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = IMPLIFNode(), IMPLIFNode()

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="do not reach the layers of unused.theta"):
        sj_ext.materialize(Two(), torch.rand(2, 4))
    with pytest.raises(TypeError, match="model must be"):
        sj_ext.materialize(Two, torch.rand(2, 4))


MADE = [IMPLIFNode, MultiLevelFiringNode, TurnOffNode, TurnOnNode]


@pytest.mark.parametrize("make", [*MADE, lambda: TurnOnNode([0.5, 0.6], decay_shape="channel")])
def test_nodes_are_built_on_the_meta_device(make):
    with torch.device("meta"):
        node = nn.Sequential(make())
        assert all(p.is_meta for p in node.parameters()) and repr(node)
        sj_ext.materialize(node, torch.empty(3, 2, device="meta"))
    assert repr(node.to_empty(device="cpu"))
    assert repr(make().to("meta"))


def test_cells_and_models_are_built_on_the_meta_device():
    with torch.device("meta"):
        cell = sj_ext.layer.TemporalReversible([nn.Linear(4, 4)], [0.5])
        model = sj_ext.model.TRevSNN((8, 8, 8, 8), 10, 2)
        with pytest.raises(ValueError, match="at least min_decay"):
            sj_ext.layer.TemporalReversible([nn.Linear(4, 4)], [0.0])
    for made in (cell, model):
        assert repr(made) and all(p.is_meta for p in made.parameters())


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_references_that_a_swap_leaves_behind_are_said(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.LIFNode()
            self.all = {"a": [self.node]} if kind is dict else kind([self.node])

    model = nn.Sequential(Net())
    with pytest.warns(UserWarning, match=r"attribute 0\.all .* still holds neurons"):
        sj_ext.swap_neurons(model, {neuron.LIFNode: IMPLIFNode})


@pytest.mark.filterwarnings("error")
def test_an_optimizer_that_is_older_than_the_swap_is_said():
    model = nn.Sequential(nn.Linear(4, 4), neuron.LIFNode())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="a SGD that was built before the swap lacks 1 parameters"):
        sj_ext.swap_neurons(model, {neuron.LIFNode: IMPLIFNode})
    del optimizer
    other = nn.Sequential(nn.Linear(4, 4), neuron.LIFNode())
    sj_ext.swap_neurons(other, {neuron.LIFNode: IMPLIFNode})
