"""In inference no autograd function of ours, nor of the host's surrogates, is on the way."""

import nodes
import pytest
import torch

import sj_ext
from sj_ext import host
from sj_ext.layer import ScaledWSConv2d
from sj_ext.model import TRevSNN, reparameterize
from sj_ext.surrogate import DSpike, Rect


def functions(cls=torch.autograd.Function):
    for sub in cls.__subclasses__():
        yield from functions(sub)
        if sub.__module__.startswith(("sj_ext", "spikingjelly.activation_based.surrogate")):
            yield sub


@pytest.fixture
def applied(monkeypatch):
    """Names of the autograd functions that have been applied."""
    names = []

    def watch(function):
        apply = function.apply

        def watched(*args):
            names.append(function.__name__)
            return apply(*args)

        monkeypatch.setattr(function, "apply", watched)

    for function in functions():
        watch(function)
    return names


def frozen(net):
    return net.eval().requires_grad_(False)


INFERENCE = {
    "no_grad": (torch.no_grad, torch.nn.Module.eval),
    "inference_mode": (torch.inference_mode, torch.nn.Module.eval),
    "frozen": (torch.enable_grad, frozen),
}


@pytest.mark.parametrize("how", INFERENCE)
@pytest.mark.parametrize("name", nodes.PLUGIN)
def test_neurons(name, how, applied):
    context, prepare = INFERENCE[how]
    x = 2 * torch.randn(3, 2, 4, 5, 5)
    node = nodes.PLUGIN[name].make(step_mode="m").eval()
    with torch.no_grad():
        node(x)
    host.functional.reset_net(node)
    node = prepare(node)
    applied.clear()
    with context():
        inside = node(x)
    assert applied == []
    host.functional.reset_net(node.requires_grad_())
    outside = node(x.requires_grad_())
    assert torch.equal(inside, outside.detach())
    if "TurnO" in name or "MultiLevel" in name:
        assert applied  # so that the watch sees something


@pytest.mark.parametrize("how", INFERENCE)
@pytest.mark.parametrize("norm", ["ws", "bn"])
def test_t_revsnn(how, norm, applied):
    context, prepare = INFERENCE[how]
    net = TRevSNN((4, 4, 4, 4), 5, 2, norm=norm)
    x = torch.rand(2, 3, 16, 16)
    expected = net.eval()(x).detach()
    assert applied
    applied.clear()
    net = prepare(net)
    with context():
        torch.testing.assert_close(net(x), expected)
    folded = reparameterize(net)
    assert folded.cell.memory == "autograd"
    assert not any(p.requires_grad for p in folded.parameters())
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
    assert applied == []


def test_layers_and_surrogates(applied):
    conv, x = ScaledWSConv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    expected = conv(x).detach()
    assert applied == ["_ScaledWSConv"]
    applied.clear()
    with torch.no_grad():
        assert torch.equal(conv(x), expected)
    assert applied == []


def surrogates():
    for name, cls in vars(host.surrogate).items():
        if isinstance(cls, type) and issubclass(cls, torch.nn.Module) and "Base" not in name:
            yield cls(3) if name == "MultiLevelSpikeCount" else cls()
    yield from (Rect(), DSpike())


@pytest.mark.parametrize("spiking", [True, False])
def test_every_surrogate_is_the_comparison_that_stands_for_it(spiking):
    above = torch.cat((torch.rand(100), torch.tensor([0.0, -0.0, 1.0])))
    above[50:100] -= 0.5
    for function in surrogates():
        if type(function).__name__ == "PoissonPass":  # draws from probabilities
            continue
        function.spiking = spiking
        try:
            spikes = function(above.clone().requires_grad_()).detach()
        except NotImplementedError:  # the host's own
            continue
        with torch.no_grad():
            fired = sj_ext.inference.fire(function, above.clone())
        torch.testing.assert_close(fired, spikes, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(host.GENERATION == 1, reason="0.0.0.0.14 has no stochastic surrogate")
def test_a_stochastic_surrogate_draws():
    with torch.no_grad():
        assert sj_ext.inference.fire(host.surrogate.PoissonPass(), torch.zeros(9)).sum() == 0


def test_a_users_surrogate_is_called_as_it_is():
    calls = []

    class Noisy(host.surrogate.Sigmoid):
        def forward(self, x):
            calls.append(x)
            return super().forward(x)

    with torch.no_grad():
        sj_ext.inference.fire(Noisy(), torch.randn(3))
        sj_ext.inference.fire(torch.relu, torch.randn(3))
    assert len(calls) == 1
