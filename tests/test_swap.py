"""swap_neurons: the same network with other neurons, and nothing else changed."""

import copy

import pytest
import torch
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.neuron import (
    IMPIFNode,
    IMPLIFNode,
    IMPParametricLIFNode,
    MultiLevelFiringNode,
    with_learnable_imp,
)
from sj_ext.surrogate import DSpike

neuron, functional = host.neuron, host.functional
TO_IMP = {
    neuron.IFNode: IMPIFNode,
    neuron.LIFNode: IMPLIFNode,
    neuron.ParametricLIFNode: IMPParametricLIFNode,
}


def hosts_models():
    from spikingjelly.activation_based.model import sew_resnet, spiking_vgg

    def sew():
        return sew_resnet.sew_resnet18(
            cnf="ADD",
            spiking_neuron=neuron.IFNode,
            surrogate_function=host.surrogate.ATan(),
            detach_reset=True,
            num_classes=10,
        )

    def vgg():
        return spiking_vgg.spiking_vgg11(
            spiking_neuron=neuron.LIFNode, tau=1.5, decay_input=False, num_classes=10
        )

    models = {"SEW-ResNet-18": (sew, (3, 32, 32)), "spiking VGG-11": (vgg, (3, 32, 32))}
    if host.GENERATION == 2:
        from spikingjelly.activation_based.model.spikformer import Spikformer

        models["Spikformer"] = (
            lambda: Spikformer(
                T=4, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=64,
                num_heads=4, depths=2,
            ),
            (3, 32, 32),
        )  # fmt: skip
    return models


@pytest.mark.parametrize("name", hosts_models())
def test_hosts_model_gives_the_same_output_and_trains(name):
    build, shape = hosts_models()[name]
    net = build()
    functional.set_step_mode(net, "m")
    for module in net.modules():  # batch statistics wide enough for every layer to fire
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.reset_parameters()
    net.eval()
    swapped = copy.deepcopy(net)
    spiking = sum(type(m) in TO_IMP for m in net.modules())
    assert sj_ext.swap_neurons(swapped, TO_IMP, imp_init=(0.0, 0.0)) == spiking > 5
    x = torch.rand(2, 2, *shape) * 2
    x = x if name != "Spikformer" else x[0]  # Spikformer repeats the image over T by itself
    assert torch.equal(swapped(x), net(x))
    functional.reset_net(swapped), functional.reset_net(net)
    swapped.train()
    optimizer = torch.optim.Adam(sj_ext.parameter_groups(swapped, 0.01, 1e-2))
    y = swapped(x)
    nn.functional.cross_entropy(y.flatten(0, y.dim() - 2), torch.arange(y[..., 0].numel()) % 10
    ).backward()  # fmt: skip
    thetas = [m.theta for m in swapped.modules() if hasattr(m, "theta")]
    before = [theta.detach().clone() for theta in thetas]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, thetas, strict=True))
    assert all(theta.isfinite().all() for theta in thetas)


def example(**kwargs):
    return nn.Sequential(
        nn.Linear(4, 5),
        neuron.ParametricLIFNode(
            3.0, False, 0.8, None, DSpike(2.0), True, step_mode="m", store_v_seq=True, **kwargs
        ),
    )


def test_hyper_parameters_and_learned_ones_are_kept():
    net = example()
    old = net[1]
    with torch.no_grad():
        old.w.fill_(0.37)
    old.eval()
    sj_ext.swap_neurons(net, TO_IMP, imp_shape="neuron")
    new = net[1]
    assert type(new) is IMPParametricLIFNode
    assert new.w is old.w
    assert (new.v_threshold, new.v_reset, new.decay_input, new.detach_reset) == (
        (0.8, None, False, True)
    )
    assert new.surrogate_function is old.surrogate_function
    assert new.step_mode == "m" and new.store_v_seq and not new.training
    assert new.imp_shape == "neuron"


def test_overrides_win_over_what_is_kept():
    net = example()
    sj_ext.swap_neurons(net, TO_IMP, v_threshold=0.5, step_mode="s", imp_shape="layer")
    assert net[1].v_threshold == 0.5 and net[1].step_mode == "s" and net[1].v_reset is None


def test_every_hyper_parameter_of_every_host_neuron_is_kept():
    import nodes

    for cls in nodes.stateful_classes().values():
        if not nodes.has_scalar_potential(cls) or cls in host.ONLINE_NEURONS:
            continue
        old = nodes.make(cls)
        for name, value in list(vars(old).items()):
            if isinstance(value, float) and name != "v_reset":
                vars(old)[name] = value * 1.25  # what no constructor default can give
        net = nn.Sequential(old)
        sj_ext.swap_neurons(net, {cls: with_learnable_imp(cls)}, imp_shape="layer")
        for name, value in vars(old).items():
            if isinstance(value, int | float | str | None):
                assert vars(net[0])[name] == value, (cls, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtype_of_the_network_around_it_is_kept(dtype):
    net = nn.Sequential(nn.Linear(4, 5), nn.Sequential(neuron.LIFNode())).to(dtype)
    sj_ext.swap_neurons(net, TO_IMP)
    net(torch.rand(2, 4, dtype=dtype))
    assert net[1][0].theta.dtype == dtype


def test_device_of_the_network_around_it_is_kept():
    net = nn.Sequential(nn.Linear(4, 5), neuron.LIFNode()).to("meta")
    sj_ext.swap_neurons(net, TO_IMP, imp_shape="layer")
    assert net[1].theta.device.type == "meta"


def test_hooks_go_along_and_their_handles_still_remove_them():
    net = example()
    seen = []
    handle = net[1].register_forward_hook(lambda *_: seen.append(1))
    sj_ext.swap_neurons(net, TO_IMP)
    net(torch.rand(2, 3, 4))
    assert seen == [1]
    handle.remove()
    net(torch.rand(2, 3, 4))
    assert seen == [1]


def test_shared_neurons_stay_shared_and_count_once():
    shared = neuron.LIFNode()
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, neuron.LIFNode())})
    assert sj_ext.swap_neurons(net, TO_IMP, imp_shape="layer") == 2
    assert net["a"] is net["b"][0] and net["a"] is not net["b"][1]
    assert type(net["a"]) is IMPLIFNode


def test_subclasses_are_left_alone():
    class Mine(neuron.LIFNode):
        pass

    net = nn.Sequential(Mine(), neuron.LIFNode())
    assert sj_ext.swap_neurons(net, TO_IMP) == 1
    assert type(net[0]) is Mine


def test_a_swap_in_the_middle_of_a_sequence_goes_on():
    net = nn.Sequential(neuron.IFNode(v_threshold=9.0, step_mode="m"))
    x = torch.rand(2, 3, 4)
    net(x)
    sj_ext.swap_neurons(net, TO_IMP, imp_init=(0.5, 0.5), imp_shape="layer")
    net(x)
    torch.testing.assert_close(net[0].v, 2 * x.sum(0))
    functional.reset_net(net)
    net(x)
    torch.testing.assert_close(net[0].v, 0.5 + x.sum(0))


def test_neurons_of_another_kind_take_what_they_know():
    net = nn.Sequential(neuron.LIFNode(3.0, False, 0.7, None, step_mode="m"))
    sj_ext.swap_neurons(net, {neuron.LIFNode: MultiLevelFiringNode}, thresholds=(0.7, 1.4))
    node = net[0]
    assert (node.tau, node.decay_input, node.v_reset, node.step_mode) == (3.0, False, None, "m")
    assert node.thresholds == (0.7, 1.4)
    assert isinstance(node.surrogate_function, host.surrogate.Sigmoid)


def test_a_turn_on_node_takes_what_it_knows():
    net = nn.Sequential(neuron.LIFNode(v_threshold=0.7, step_mode="m"))
    sj_ext.swap_neurons(net, {neuron.LIFNode: sj_ext.neuron.TurnOnNode}, decay=0.25)
    assert net[0].v_threshold == 0.7 and net[0].step_mode == "m"
    sj_ext.swap_neurons(net, {sj_ext.neuron.TurnOnNode: sj_ext.neuron.TurnOffNode})
    assert net[0].v_threshold == 0.7 and net[0].step_mode == "m"


@pytest.mark.parametrize(
    ("mapping", "overrides", "error", "words"),
    [
        ({neuron.QIFNode: with_learnable_imp(neuron.QIFNode)}, {}, ValueError, "QIFNode.*IFNode"),
        ({neuron.IFNode: nn.Linear}, {}, TypeError, "neuron class"),
        ({neuron.IFNode: IMPIFNode()}, {}, TypeError, "neuron class"),
        ({neuron.IFNode: torch.relu}, {}, TypeError, "neuron class"),
        ({"IFNode": IMPIFNode}, {}, TypeError, "module class"),
        ({neuron.IFNode: IMPIFNode}, {"imp_size": 3}, TypeError, "imp_size"),
        ({}, {}, ValueError, "mapping"),
    ],
)
def test_bad_mapping_is_named(mapping, overrides, error, words):
    net = nn.Sequential(neuron.IFNode())
    with pytest.raises(error, match=words):
        sj_ext.swap_neurons(net, mapping, **overrides)
    assert type(net[0]) is neuron.IFNode


def test_a_neuron_alone_cannot_be_swapped_in_place():
    with pytest.raises(ValueError, match="model itself"):
        sj_ext.swap_neurons(neuron.IFNode(), TO_IMP)


def test_neurons_of_a_network_that_was_reset_before_are_reset_too():
    net = nn.Sequential(nn.Linear(3, 3), host.neuron.LIFNode())
    net(torch.ones(2, 3))
    host.functional.reset_net(net)
    old = net[1]  # somebody still holds it
    sj_ext.swap_neurons(net, {host.neuron.LIFNode: IMPLIFNode})
    net(torch.ones(2, 3))
    host.functional.reset_net(net)
    assert old is not net[1] and not isinstance(net[1].v, torch.Tensor)
