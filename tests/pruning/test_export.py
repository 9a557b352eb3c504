"""What is exported computes what the pruned network computes."""

import pytest
import torch
from pruning.nets import LIF, mlp, move, narrow_vgg
from torch import nn

from sj_ext import host
from sj_ext.pruning import (
    GlobalMagnitudePruner,
    MinimaxPruner,
    export_csr,
    make_permanent,
    shrink,
)


def finish(model, cls=GlobalMagnitudePruner, **arguments):
    pruner = cls(model, **{"schedule": 8, **arguments})
    while not pruner.finished:
        move(model, 0.02)
        pruner.step()
    return pruner


@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("build", [mlp, narrow_vgg])
def test_csr_holds_the_kept_weights_and_no_more(build, permanent):
    model = build()
    pruner = finish(model, budget=0.1, first=True)
    dense = {name: model.get_submodule(name).weight.detach() for name in pruner.kept_shares}
    if permanent:
        make_permanent(model)
    entries = export_csr(model)
    assert sum(entry["weight"].values().numel() for entry in entries.values()) == pruner.kept
    for name, entry in entries.items():
        assert entry["weight"].layout == torch.sparse_csr
        assert torch.equal(entry["weight"].to_dense().view(entry["shape"]), dense[name])
        assert torch.equal(entry["bias"], model.get_submodule(name).bias)


def test_a_csr_product_equals_the_convolution():
    conv = host.layer.Conv2d(3, 8, 3, padding=1)
    model = nn.Sequential(conv)
    finish(model, budget=0.2, first=True)
    entry = export_csr(model)["0"]
    x = torch.rand(2, 3, 7, 7)
    columns = nn.functional.unfold(x, 3, padding=1)
    got = torch.stack([entry["weight"] @ c for c in columns]) + entry["bias"][:, None]
    torch.testing.assert_close(got.view(2, 8, 7, 7), conv(x))


def test_nothing_to_export():
    with pytest.raises(ValueError, match="no layer with zeros"):
        export_csr(mlp())


def chain(kind):
    """Chains of convolutions, transposed ones and linear layers, with normalisation and neurons."""
    layer, node = host.layer, host.neuron.LIFNode
    lif = {"surrogate_function": LIF["surrogate_function"], "v_threshold": 0.3}
    if kind == "vgg":
        net = narrow_vgg()
    elif kind == "vgg without normalisation":
        net = narrow_vgg(batch_norm=False)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, 2.0)
    elif kind == "transposed":
        net = nn.Sequential(
            layer.Conv2d(3, 8, 3, padding=1),
            layer.BatchNorm2d(8),
            node(**lif),
            layer.ConvTranspose2d(8, 12, 2, stride=2),
            layer.BatchNorm2d(12),
            node(**lif),
            layer.AvgPool2d(16),
            layer.Conv2d(12, 6, 3, padding=1),
            node(**lif),
            layer.Flatten(),
            layer.Linear(6 * 16, 5),
        )
    else:
        net = nn.Sequential(
            layer.Linear(12, 30),
            node(**lif),
            layer.Linear(30, 20),
            node(**lif),
            layer.Linear(20, 4),
        )
    host.functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("kind", ["vgg", "vgg without normalisation", "transposed", "linear"])
@pytest.mark.parametrize("cls", [GlobalMagnitudePruner, MinimaxPruner])
def test_the_smaller_network_computes_the_same(kind, cls):
    model = chain(kind)
    pruner = finish(model, cls, budget=0.4, granularity="channel", first=True)
    shape = (3, 2, 12) if kind == "linear" else (3, 2, 3, 32, 32)
    x = torch.rand(shape)
    model.train()
    model(x)  # statistics of the normalisation that are not those of the start
    host.functional.reset_net(model)
    small = shrink(model, x)
    assert small.training
    model.eval()
    small.eval()
    for _ in range(2):
        y = torch.rand(shape)
        host.functional.reset_net(model)
        host.functional.reset_net(small)
        want = model(y)
        assert want.abs().max() > 0
        torch.testing.assert_close(small(y), want, rtol=1e-4, atol=1e-5)
    # inputs of cut channels are gone too, so fewer weights remain than the pruner kept
    total = sum(
        m.weight.numel()
        for m in small.modules()
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))
    )
    assert total < pruner.kept


def test_without_a_mask_there_is_nothing_to_shrink():
    with pytest.raises(ValueError, match="no closed mask"):
        shrink(narrow_vgg(), torch.rand(2, 2, 3, 32, 32))


def test_channels_that_are_not_silent_are_noticed():
    model = chain("linear")
    finish(model, budget=0.75, granularity="channel", layers="0")
    cut = (model[0].weight == 0).all(1)
    assert cut.any()
    with torch.no_grad():
        model[0].bias[cut] = 3.0
    x = torch.rand(3, 2, 12)
    small = shrink(model, x)  # a channel with a bias is no cut channel: it stays
    assert small[0].out_features == 30
