"""The re-parameterised network gives the same answer, from spikes and weights only."""

import pytest
import torch
from torch import nn

from sj_ext.layer import ScaledWSConv2d
from sj_ext.model import TRevSNN, map_inputs, reparameterize, trevsnn_small

WIDTHS = (4, 6, 8, 10)
CASES = [
    {"encode": "group", "norm": "ws"},
    {"encode": "repeat", "norm": "bn", "kernel_size": 5},
    {"events": True, "norm": "bn"},
    {"events": True, "norm": "ws"},
]


def trained_net(dtype=torch.float64, **kwargs) -> TRevSNN:
    """A network whose parameters and running statistics are as if it had been trained."""
    net = TRevSNN(WIDTHS, 5, 3, **kwargs).to(dtype)
    for name, p in net.named_parameters():
        if "decays" in name:
            nn.init.uniform_(p, 0.2, 0.9)
        else:
            nn.init.normal_(p, 0.3, 0.6)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return net.eval()


def some_input(net, dtype=torch.float64):
    if net.events:
        return torch.randint(0, 3, (3, 2, 2, 16, 16)).to(dtype)
    return torch.randn(2, 3, 32, 32, dtype=dtype)


@pytest.mark.parametrize("compose", [False, True])
@pytest.mark.parametrize("kwargs", CASES)
def test_output_is_the_same(kwargs, compose):
    net = trained_net(**kwargs)
    x = some_input(net)
    folded = reparameterize(net, compose=compose)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), atol=1e-5, rtol=0)
        assert net(x).std() > 1e-2  # the networks say something


@pytest.mark.parametrize("kwargs", CASES)
def test_nothing_is_left_to_fold(kwargs):
    folded = reparameterize(trained_net(**kwargs))
    left = [type(m).__name__ for m in folded.modules()]
    assert not any(isinstance(m, ScaledWSConv2d | nn.BatchNorm2d) for m in folded.modules())
    assert not folded.training and left
    assert all("gamma" not in name for name, _ in folded.named_parameters())


@pytest.mark.parametrize("compose", [False, True])
@pytest.mark.parametrize("kwargs", CASES)
def test_linear_maps_between_spiking_layers_read_spikes(kwargs, compose):
    net = trained_net(**kwargs)
    entries = map_inputs(reparameterize(net, compose=compose), some_input(net))
    assert [e.name for e in entries if not e.binary] == []
    # three columns: 3 downs, 2 x 2 halves of blocks at 4 levels; 3 ups from the second on; one head
    assert len(entries) == 3 * (3 + 16) + 2 * 3 + 1
    assert len({e.name for e in entries}) == len(entries)
    assert all(0 <= e.rate <= 1 for e in entries)
    assert sum(0 < e.rate < 1 for e in entries) > len(entries) / 2


@pytest.mark.parametrize("kwargs", CASES)
def test_composed_every_convolution_after_the_stem_reads_spikes(kwargs):
    """Looked at from outside, with none of the package's own list of maps."""
    net = trained_net(**kwargs)
    folded = reparameterize(net, compose=True)
    seen = []

    def look(name):
        def hook(module, args):
            seen.append((name, bool(((args[0] == 0) | (args[0] == 1)).all())))

        return hook

    convs = [
        (name, m)
        for name, m in folded.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and not name.startswith("stem")
    ]
    for name, module in convs:
        module.register_forward_pre_hook(look(name))
    folded(some_input(net))
    assert {name for name, _ in seen} == {name for name, _ in convs}
    assert [name for name, binary in seen if not binary] == []


def test_the_check_sees_a_map_that_does_not_read_spikes():
    net = trained_net(norm="bn")
    folded = reparameterize(net)
    folded.cell.levels[1][2].blocks[0].neuron2 = nn.Identity()
    wrong = [e.name for e in map_inputs(folded, some_input(net)) if not e.binary]
    assert wrong == ["step1.level2.block0.second"]
    with pytest.raises(RuntimeError, match="evaluation mode"):
        map_inputs(folded.train(), some_input(net))


def test_shared_convolutions_stay_shared():
    net = trained_net(norm="bn")
    folded = reparameterize(net)
    tails = {id(column[0].blocks[1].tail.pwconv.weight) for column in folded.cell.levels}
    assert len(tails) == 1
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in net.parameters())


def test_inference_parameters_are_those_of_one_classifier():
    """What only training needs is left out: the paper's 29.8 M for small, and gains beside it."""
    folded = reparameterize(trevsnn_small(encode="repeat", norm="bn"))
    assert sum(p.numel() for p in folded.parameters()) / 1e6 == pytest.approx(29.8, abs=0.1)


def test_the_model_is_left_as_it_was():
    net = trained_net()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reparameterize(net)
    assert net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_cannot_be_folded_is_refused():
    with pytest.raises(TypeError, match="model must be a TRevSNN, got a Conv2d"):
        reparameterize(nn.Conv2d(3, 3, 3))
    net = trained_net()
    for compose in (False, True):
        with pytest.raises(ValueError, match="already"):
            reparameterize(reparameterize(net, compose=compose))
    folded = reparameterize(net)
    with pytest.raises(RuntimeError, match="classifiers of every step"):
        folded.step_logits(some_input(net))
    net.cell.levels[0][0].blocks[0].tail = nn.Identity()
    with pytest.raises(ValueError, match="does not know"):
        reparameterize(net)
