"""parameter_groups: what neurons, norms and biases have is kept out of weight decay."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import sj_ext
from sj_ext import host
from sj_ext.model import TRevSNN
from sj_ext.neuron import IMPIFNode, IMPLIFNode, IMPParametricLIFNode
from sj_ext.surrogate import DSpike


def network():
    return nn.Sequential(
        host.layer.Conv2d(1, 4, 3),
        host.layer.BatchNorm2d(4),
        IMPParametricLIFNode(imp_shape="layer", surrogate_function=DSpike(learnable=True)),
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.LayerNorm(5),
        IMPLIFNode(imp_shape="layer"),
    )


def test_each_parameter_is_in_one_group_and_the_right_one():
    net = network()
    decayed, free = sj_ext.parameter_groups(net, 0.05, 0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "4.weight"}
    assert {names[id(p)] for p in free["params"]} == {
        "0.bias", "4.bias", "1.weight", "1.bias", "2.w", "2.theta", "2.surrogate_function.alpha",
        "5.weight", "5.bias", "6.theta",
    }  # fmt: skip
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert decayed["lr"] == free["lr"] == 0.1


def test_weight_decay_leaves_theta_alone():
    node = IMPLIFNode(imp_shape="layer", imp_init=(0.5, 0.5))
    net = nn.Sequential(nn.Linear(3, 3), node)
    optimizer = torch.optim.SGD(sj_ext.parameter_groups(net, 0.5, 0.1))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    weight = net[0].weight.detach().clone()
    optimizer.step()
    assert node.theta.item() == 0.5
    torch.testing.assert_close(net[0].weight, weight * 0.95)


def test_a_module_can_name_its_own_exempt_parameters():
    class Scaled(nn.Linear):
        no_weight_decay = frozenset({"weight"})

    net = Scaled(2, 2)
    decayed, free = sj_ext.parameter_groups(net, 0.1, without=("named",))
    assert decayed["params"] == [net.bias] and "lr" not in decayed
    assert len(free["params"]) == 1 and free["params"][0] is net.weight


def test_shared_parameters_are_listed_once():
    shared = nn.Linear(2, 2)
    groups = sj_ext.parameter_groups(nn.Sequential(shared, shared), 0.1, 0.1)
    assert [len(g["params"]) for g in groups] == [1, 1]
    torch.optim.AdamW(groups)


BY_KIND = {
    "bias": {"0.bias", "1.bias", "4.bias", "5.bias"},
    "norm": {"1.weight", "1.bias", "5.weight", "5.bias"},
    "neuron": {"2.w", "2.theta", "2.surrogate_function.alpha", "6.theta"},
    "named": set(),
}


@pytest.mark.parametrize(
    "without", [(), ("bias",), ("bias", "norm"), ["neuron"], {"named", "norm"}, tuple(BY_KIND)]
)
def test_the_kinds_without_decay_can_be_chosen(without):
    net = network()
    expected = set().union(*(BY_KIND[kind] for kind in without))
    assert sj_ext.no_weight_decay(net, without=without) == expected
    decayed, free = sj_ext.parameter_groups(net, 0.1, without=without)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in free["params"]} == expected
    assert len(decayed["params"]) + len(expected) == len(names)


def test_names_of_biases():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("inner_bias", "relative_bias_table", "weight", "unbiased"):
                setattr(self, name, nn.Parameter(torch.zeros(1)))

    net = nn.Sequential(Parts(), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1))
    assert sj_ext.no_weight_decay(net) == {
        "0.inner_bias", "1.bias_ih_l0", "1.bias_hh_l0", "2.in_proj_bias", "2.out_proj.bias",
    }  # fmt: skip


class Named(nn.Module):
    """A model of the user's, which names some parameters itself, as timm's models do."""

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(3))
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), host.neuron.IFNode())

    def no_weight_decay(self):
        return {"pos_embed", "body.0.*"}

    def forward(self, x):
        return self.body(x + self.pos_embed)


NAMED = {"pos_embed", "body.0.weight", "body.0.bias"}


def test_names_with_dots_and_wildcards():
    assert sj_ext.no_weight_decay(Named(), without=("named",)) == NAMED
    inside = nn.ModuleDict({"backbone": Named()})
    expected = {f"backbone.{name}" for name in NAMED}
    assert sj_ext.no_weight_decay(inside, without=("named",)) == expected


def test_a_model_may_ask_on_its_own_behalf():
    class Asking(Named):
        def no_weight_decay(self):
            return super().no_weight_decay() | sj_ext.no_weight_decay(self)

    net = Asking()
    assert net.no_weight_decay() == NAMED | {"body.1.bias", "body.0.*"}
    assert sj_ext.no_weight_decay(net) == NAMED | {"body.1.bias"}


# ---- wrappers ------------------------------------------------------------------------------------


def small():
    # a surrogate of its own: FSDP marks what it wraps, and the host's default is one for all nodes
    node = IMPLIFNode(imp_shape="layer", surrogate_function=host.surrogate.Sigmoid())
    return nn.Sequential(nn.Linear(4, 4), node, nn.LayerNorm(4))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "torch.compile": torch.compile,
    "checkpoint": checkpoint_wrapper,
    "checkpoint of the parts": lambda net: nn.Sequential(*map(checkpoint_wrapper, net)),
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "FSDP": lambda net: FSDP(net, use_orig_params=True, device_id=torch.device("cpu")),
    "fully_shard": lambda net: fully_shard(net, mesh=init_device_mesh("cpu", (1,))),
}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain(name):
    wrappers = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
    return ".".join(part for part in name.split(".") if part not in wrappers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_looked_through(wrapper, group):
    net = small()
    net[0].no_weight_decay = {"weight"}
    for without, expected in (
        (("bias", "norm", "neuron"), {"0.bias", "1.theta", "2.weight", "2.bias"}),
        (("named",), {"0.weight"}),
    ):
        wrapped = WRAPPERS[wrapper](copy.deepcopy(net))
        assert {
            plain(name) for name in sj_ext.no_weight_decay(wrapped, without=without)
        } == expected
        free = sj_ext.parameter_groups(wrapped, 0.1, without=without)[1]["params"]
        names = {id(p): plain(name) for name, p in wrapped.named_parameters()}
        assert {names[id(p)] for p in free} == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "checkpoint of the parts"])
def test_names_that_a_model_gives_count_inside_wrappers_too(wrapper, group):
    net = Named()
    if wrapper == "DistributedDataParallel":
        net = WRAPPERS[wrapper](net)
    else:
        net.body = WRAPPERS[wrapper](net.body)
    names = sj_ext.no_weight_decay(net, without=("named",))
    assert {plain(name) for name in names} == NAMED


@pytest.mark.filterwarnings("ignore")
def test_flat_parameters_cannot_be_told_apart(group):
    flat = FSDP(small(), use_orig_params=False, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match="model holds a flat parameter.*use_orig_params=True"):
        sj_ext.parameter_groups(flat, 0.1)


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def test_parametrizations_are_looked_through():
    net = small()
    net[0].no_weight_decay = {"weight"}
    for module, name in (
        (net[0], "weight"),
        (net[0], "bias"),
        (net[1], "theta"),
        (net[2], "weight"),
    ):
        parametrize.register_parametrization(module, name, Half())
    assert sj_ext.no_weight_decay(net, without=("bias",)) == {
        "0.parametrizations.bias.original", "2.bias"
    }  # fmt: skip
    assert sj_ext.no_weight_decay(net, without=("norm", "neuron")) == {
        "1.parametrizations.theta.original", "2.parametrizations.weight.original", "2.bias"
    }  # fmt: skip
    assert sj_ext.no_weight_decay(net, without=("named",)) == {"0.parametrizations.weight.original"}
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    normed.no_weight_decay = lambda: {"0.weight"}
    assert sj_ext.no_weight_decay(normed, without=("named",)) == {
        "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"
    }  # fmt: skip


# ---- timm ----------------------------------------------------------------------------------------


def swapped():
    net = Named()
    assert sj_ext.swap_neurons(net, {host.neuron.IFNode: IMPIFNode}, imp_shape=(1, 3)) == 1
    return net


def test_a_network_answers_after_a_swap():
    net = swapped()
    expected = NAMED | {"body.1.bias", "body.2.theta"}
    assert net.no_weight_decay() == expected
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        copied.extra = nn.LayerNorm(3)
        assert copied.no_weight_decay() == expected | {"extra.weight", "extra.bias"}
    assert net.no_weight_decay() == expected


@pytest.mark.parametrize(
    "make",
    [
        swapped,
        lambda: TRevSNN((4, 4, 4, 4), 3, 2, norm="bn"),
        lambda: TRevSNN((4, 4, 4, 4), 3, 2, events=True),
    ],
)
def test_timm_leaves_out_what_the_model_names(make):
    pytest.importorskip("timm")
    from timm.optim import create_optimizer_v2

    net = make()
    optimizer = create_optimizer_v2(net, "adamw", lr=0.1, weight_decay=0.3)
    names = {id(p): name for name, p in net.named_parameters()}
    decayed = [
        names[id(p)]
        for group in optimizer.param_groups
        if group["weight_decay"] == 0.3
        for p in group["params"]
    ]
    assert set(decayed) == set(names.values()) - sj_ext.no_weight_decay(net)
    assert decayed and all(name.endswith("weight") for name in decayed)
    everything = create_optimizer_v2(
        net, "adamw", weight_decay=0.3, param_group_fn=lambda m: sj_ext.parameter_groups(m, 0.3)
    )
    assert [len(group["params"]) for group in everything.param_groups] == [
        len(decayed),
        len(names) - len(decayed),
    ]


@pytest.mark.parametrize("kwargs", [{"weight_decay": -1, "lr": 1}, {"weight_decay": 0, "lr": -1}])
def test_negative_rates_are_refused(kwargs):
    with pytest.raises(ValueError, match="weight_decay|lr"):
        sj_ext.parameter_groups(nn.Linear(1, 1), **kwargs)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "weight_decay must be a number", {"weight_decay": "a"}),
        (TypeError, "lr must be a number", {"weight_decay": 0.1, "lr": "a"}),
        (TypeError, "without must be a collection", {"weight_decay": 0.1, "without": "bias"}),
        (TypeError, "without must be a collection", {"weight_decay": 0.1, "without": 1}),
        (ValueError, "each of without.*got 'norms'", {"weight_decay": 0.1, "without": ("norms",)}),
        (TypeError, "each of without.*got 1", {"weight_decay": 0.1, "without": [1]}),
    ],
)
def test_wrong_arguments(error, message, arguments):
    with pytest.raises(error, match=message):
        sj_ext.parameter_groups(nn.Linear(1, 1), **arguments)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        sj_ext.parameter_groups([nn.Linear(1, 1)], 0.1)


@pytest.mark.parametrize("decays", [[0.5, 0.25], [[0.5, 0.25], [0.4, 0.3]]])
def test_decays_of_a_reversible_cell_do_not_decay(decays):
    cell = sj_ext.layer.TemporalReversible([nn.Linear(3, 3), nn.Linear(3, 3)], decays)
    decayed, free = sj_ext.parameter_groups(cell, 0.1)
    biases = {id(level.bias) for level in cell.levels}
    assert {id(p) for p in free["params"]} == {id(p) for p in cell.decays.parameters()} | biases
    assert {id(p) for p in decayed["params"]} == {id(level.weight) for level in cell.levels}
