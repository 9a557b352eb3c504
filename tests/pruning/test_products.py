"""Products of activations are a share of what is counted, by the closed forms of the attentions."""

import pytest
import torch
import torch.nn.functional as F
from pruning.nets import often_firing
from torch import nn

from sj_ext import host
from sj_ext.analysis import synaptic_operations
from sj_ext.layer.attention import DSSA, SDSA1, SDSA3, SSA, MatrixProduct, SpikeProduct
from sj_ext.pruning import GlobalMagnitudePruner, MinimaxPruner, resources, shrink
from sj_ext.pruning.layers import weight_layers
from sj_ext.pruning.resources import LayerInfo, layer_positions

functional, layer, neuron = host.functional, host.layer, host.neuron
STEPS, BATCH, DIM, HEADS, SIDE = 2, 3, 16, 4, 8
TOKENS, EACH = SIDE**2, DIM // HEADS


class Net(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.stem, self.attn, self.head = layer.Conv2d(3, DIM, 1), attention, layer.Linear(DIM, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.attn(x)).mean((-2, -1)))


class Plain(nn.Module):
    """Spiking attention without normalisation: the same in training and evaluation."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.proj = (layer.Conv2d(DIM, DIM, 1) for _ in range(4))
        self.fire = nn.ModuleList(neuron.IFNode() for _ in range(3))
        self.product = SpikeProduct(HEADS, 0.125)

    def forward(self, x):
        maps = (self.q, self.k, self.v)
        spikes = (fire(m(x)) for m, fire in zip(maps, self.fire, strict=True))
        return self.proj(self.product(*spikes))


def spike_product(heads):
    return 2 * STEPS * BATCH * heads * min(TOKENS**2 * EACH, TOKENS * EACH**2)


#: the attention, the layers that are pruned, and the multiply-accumulates of its products
FORMS = {
    "SSA": (lambda: SSA(DIM, HEADS), "attn.[qkv].conv", spike_product),
    "SDSA-3": (lambda: SDSA3(DIM, HEADS), "attn.[qkv].rep.outer.conv", spike_product),
    "SDSA-1": (lambda: SDSA1(DIM), "attn.[qkv].conv", lambda heads: 0),
    "DSSA": (
        lambda: DSSA(DIM, HEADS, patch_size=2),
        None,
        lambda heads: 2 * STEPS * BATCH * heads * (TOKENS // 4) * TOKENS * EACH,
    ),
    "plain": (Plain, "attn.[qkv]", spike_product),
}


def batch():
    return 3 * torch.rand(STEPS, BATCH, 3, SIDE, SIDE)


def cut(net, x, layers, **options):
    pruner = GlobalMagnitudePruner(
        net,
        granularity="channel",
        example_input=x,
        schedule=1,
        layers=layers,
        first=True,
        **options,
    )
    net(x)
    functional.reset_net(net)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.001  # a step
    pruner.step()
    assert pruner.finished
    return pruner


def products_of(model, x):
    names = {n for n, m in model.named_modules() if isinstance(m, MatrixProduct)}
    return [entry for entry in synaptic_operations(model.eval(), x).layers if entry.name in names]


@pytest.mark.parametrize("name", FORMS)
def test_products_cost_the_same_whatever_weights_go(name):
    make, _, form = FORMS[name]
    net, x = often_firing(Net(make())), batch()
    macs = {n: c * weight_layers(net)[n].weight.numel() for n, c in layer_positions(net, x).items()}
    want = form(HEADS)
    total = sum(macs.values()) + want
    pruner = MinimaxPruner(net, budget=0.9, resource="flops", first=True, example_input=x)
    assert pruner.floor() == pytest.approx(want / total)
    assert pruner.resources[0].amount() == pytest.approx(total / BATCH)
    assert pruner.resource == 1
    assert ("products of activations" in pruner.plan) == (want > 0)


@pytest.mark.parametrize("name", FORMS)
def test_products_shrink_with_heads_as_the_smaller_networks_own(name):
    make, layers, form = FORMS[name]
    net, x = often_firing(Net(make())), batch()
    positions = layer_positions(net, x)
    pruner = cut(net, x, layers, budget=0.6 if name == "DSSA" else 0.85, resource="flops")
    small = shrink(net, x)
    if name == "SDSA-1":
        heads = HEADS
    else:
        heads = small.attn.num_heads if name == "DSSA" else small.attn.product.heads
        assert 1 <= heads < HEADS
    count = pruner.layer_counts
    macs = {n: positions[n] * whole for n, (whole, _) in count.items()}
    left = {n: positions[n] * kept for n, (_, kept) in count.items()}
    want = (sum(left.values()) + form(heads)) / (sum(macs.values()) + form(HEADS))
    assert pruner.resource == pytest.approx(want)
    assert sum(entry.dense for entry in products_of(small, x)) == form(heads)


def test_synaptic_operations_of_products_are_those_of_the_smaller_network():
    net, x = often_firing(Net(Plain())), batch()
    cut(net, x, "attn.[qkv]", budget=0.85, resource="flops")
    small = shrink(net, x)
    share = small.attn.product.heads / HEADS
    assert share < 1
    met = []
    for module in net.modules():
        if isinstance(module, MatrixProduct):
            module.register_forward_pre_hook(
                lambda _, args: met.append(
                    torch.einsum("...ij,...jk->", *((z != 0).double() for z in args[0])).item()
                )
            )
    synops, energy = resources.synops(momentum=0), resources.energy(momentum=0)
    infos = [LayerInfo(n, m, m.weight.numel()) for n, m in weight_layers(net).items()]
    for res in (synops, energy):
        res.bind(net, infos)
        res.left = dict.fromkeys(("attn.product.first", "attn.product.second"), share)
    net.train()
    net(x)
    for res, pj in ((synops, 1.0), (energy, 0.9)):
        res.update()
        got = share * sum(res.products().values())
        assert got == pytest.approx(pj * sum(met)) and got > 0
        own = sum(entry.acs + entry.macs for entry in products_of(small, x))
        assert got == pytest.approx(pj * own)
        res.close()


class Asks(nn.Module):
    """Ordinary attention, in one of the ways in which PyTorch offers it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True) if "module" in how else None

    def forward(self, x):
        x = self.first(x)
        if self.attn is not None:
            x = self.attn(x, x, x, need_weights="weights" in self.how)[0]
        else:
            q = x.unflatten(-1, (2, 4)).transpose(1, 2)
            if self.how == "function":
                q = F.scaled_dot_product_attention(q, q, q)
            else:
                q = (q @ q.mT).softmax(-1) @ q
            x = q.transpose(1, 2).flatten(2)
        return self.last(x)


@pytest.mark.parametrize("how", ["module", "module, weights", "function", "code"])
def test_ordinary_attention_multiplies_real_numbers(how):
    net, x = Asks(how), torch.randn(4, 6, 8)
    products = 2 * 4 * 6 * 6 * 8
    weights = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    total = 4 * 6 * weights + products
    for resource, each in (("flops", 1.0), ("synops", 1.0), ("energy", 4.6e-12)):
        pruner = MinimaxPruner(net, budget=0.9, resource=resource, first=True, example_input=x)
        res = pruner.resources[0]
        assert pruner.floor() == pytest.approx(products / total, rel=1e-6)
        assert res.amount() == pytest.approx(each * total / 4, rel=1e-6)
        net(x)  # in training
        res.update()
        assert res.amount() == pytest.approx(each * total / 4, rel=1e-6)
        res.close()
        net = Asks(how)
    if how.startswith("module"):  # seen in training too
        res = resources.synops()
        res.bind(net, [])
        net(x)
        res.update()
        assert res.products() == {"attn": pytest.approx(products)}


def test_a_budget_below_the_products_says_what_they_cost():
    x = torch.randn(4, 6, 8)
    with pytest.raises(
        ValueError, match=r"products of activations cost 0\.218182.*products in attn 0\.2182"
    ):
        MinimaxPruner(Asks("module"), budget=0.1, resource="flops", first=True, example_input=x)


def test_measured_products_go_on_after_a_resume():
    net, x = Net(Plain()), batch()
    first, second = (
        MinimaxPruner(model, budget=0.5, resource="energy", first=True)
        for model in (net, Net(Plain()))
    )
    net(x)
    first.resources[0].update()
    second.load_state_dict(first.state_dict())
    assert first.resources[0].products() == second.resources[0].products()
    assert len(first.resources[0].products()) == 2
