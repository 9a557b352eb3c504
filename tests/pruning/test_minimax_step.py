"""Each step agrees with the four updates written out in float64."""

import math

import pytest
import torch
from pruning.nets import mlp, move

from sj_ext.pruning import MinimaxPruner, Rates, Resource, Schedule
from sj_ext.pruning.masks import parameter_of

STEPS, LEVELS = 400, (0.3, 0.35)
LR = 0.2


def prices(layer):
    return {"0": 1.0, "2": 3.0, "4": 0.5}[layer.name]


class Updates:
    """The specification's four updates: gather everything and sort it."""

    def __init__(self, weights, groups, costs, budgets, rates):
        self.w = [w.clone() for w in weights]
        self.groups, self.costs, self.budgets, self.rates = groups, costs, budgets, rates
        self.n = [sum(self.w[i].numel() for i in g) for g in groups]
        self.m = [
            sum(float(self.w[i].square().sum()) for i in g) / n
            for g, n in zip(groups, self.n, strict=True)
        ]
        self.s = [0.0] * len(groups)
        self.y = [0.0] * len(groups)
        self.z = [1.0] * len(budgets)
        self.cut = [0] * len(weights)
        self.start = self.resources(self.cut)
        uniform = [self.uniform_slope(c) for c in costs]
        self.span = max((r - b) / u for r, b, u in zip(self.start, budgets, uniform, strict=True))

    def sizes(self):
        return [w.numel() for w in self.w]

    def uniform_slope(self, cost):
        sizes = self.sizes()
        return sum(cost[i] * sizes[i] for i in range(len(sizes))) / self.dense(cost)

    def dense(self, cost):
        return sum(c * n for c, n in zip(cost, [*self.sizes()], strict=True))

    def resources(self, cut):
        sizes = self.sizes()
        return [
            sum(c * (n - k) for c, n, k in zip(cost, sizes, cut, strict=True)) / self.dense(cost)
            for cost in self.costs
        ]

    def slopes(self, g, k):
        if len(self.groups) > 1:
            n = self.w[g].numel()
            return [cost[g] * n / self.dense(cost) / (n / sum(self.sizes())) for cost in self.costs]
        if k == 0:
            return [self.uniform_slope(cost) for cost in self.costs]
        now = self.resources(self.cut)
        return [(1 - r) * self.n[0] / k for r in now]

    def order(self, g):
        """(magnitude, layer, index) of the group's weights, rising."""
        return sorted(
            (abs(v), i, j)
            for i in self.groups[g]
            for j, v in enumerate(self.w[i].flatten().tolist())
        )

    def step(self):
        a_s, a_y, a_z = self.rates
        moved = []
        for g in range(len(self.groups)):
            k = math.ceil(self.s[g])
            order = self.order(g)
            # 1. proximal step
            shrink = 1 / (1 + 2 * LR * self.y[g])
            for _, i, j in order[:k]:
                self.w[i].view(-1)[j] *= shrink
            # 2. s, from the next weight and from the resources
            following = order[k][0] ** 2 / self.m[g]
            pull = sum(z * d for z, d in zip(self.z, self.slopes(g, k), strict=True))
            change = a_s * self.span / STEPS * (pull - self.y[g] * following)
            limit = 4 * self.span / STEPS
            moved.append(
                min(max(self.s[g] + self.n[g] * min(max(change, -limit), limit), 0), self.n[g])
            )
        self.s = moved
        cut = [0] * len(self.w)
        for g in range(len(self.groups)):
            # 3. y, on the weights after the proximal step
            k = math.ceil(self.s[g])
            order = self.order(g)[:k]
            pressed = sum(v * v for v, _, _ in order) / (self.n[g] * self.m[g])
            self.y[g] = max(0.0, self.y[g] + a_y * pressed)
            # 4. mask
            for _, i, j in order:
                self.w[i].view(-1)[j] = 0
                cut[i] += 1
        self.cut = cut
        values = self.resources(cut)
        self.z = [
            max(0.0, z + a_z / STEPS * (r - b) / (r0 - b))
            for z, r, b, r0 in zip(self.z, values, self.budgets, self.start, strict=True)
        ]


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
@pytest.mark.parametrize("kinds", [("params",), ("priced",), ("params", "priced")], ids="+".join)
@pytest.mark.parametrize("y", [0.0, 600.0], ids=["rising", "falling"])
def test_agrees_with_the_four_updates(layerwise, kinds, y):
    model = mlp(hidden=20).double()
    made = {
        "params": "params",
        "priced": Resource("priced", lambda layer, share: prices(layer) * layer.weights * share),
    }
    budgets = LEVELS[: len(kinds)]
    rates = Rates(1.5, 0.5, 3.0)
    pruner = MinimaxPruner(
        model,
        budget=budgets,
        resource=[made[kind] for kind in kinds],
        schedule=Schedule.one_go(LEVELS[0], STEPS, 10),
        first=True,
        layerwise=layerwise,
        rates=rates,
        lr=LR,
    )
    layers = [model[0], model[2], model[4]]
    weights = [parameter_of(layer).detach() for layer in layers]
    costs = {"params": [1.0, 1.0, 1.0], "priced": [1.0, 3.0, 0.5]}
    oracle = Updates(
        weights,
        [[0], [1], [2]] if layerwise else [[0, 1, 2]],
        [costs[kind] for kind in kinds],
        budgets,
        rates,
    )
    # some way into the stage, where the multipliers matter
    sizes = [w.numel() for w in weights]
    cut = [int(0.2 * n) for n in sizes] if layerwise else None
    state = pruner.state_dict()
    if layerwise:
        oracle.s = [float(c) for c in cut]
    else:
        oracle.s = [float(int(0.2 * sum(sizes)))]
        cut = [0, 0, 0]
        for _, i, _ in oracle.order(0)[: int(oracle.s[0])]:
            cut[i] += 1
    oracle.y = [y] * len(oracle.y)
    oracle.z = [1.3 + 0.2 * i for i in range(len(kinds))]
    oracle.cut = list(cut)
    state["method"].update(
        s=list(oracle.s),
        y=list(oracle.y),
        z=list(oracle.z),
        start={"values": oracle.start, "span": oracle.span},
    )
    state["cut"] = list(cut)
    pruner.load_state_dict(state)
    before = sum(oracle.s)
    for _ in range(6):
        move(model, 1e-2)
        oracle.w = [w.clone() for w in weights]
        assert pruner.step()
        oracle.step()
        assert (pruner.s if layerwise else [pruner.s]) == pytest.approx(oracle.s, rel=1e-9)
        assert (pruner.y if layerwise else [pruner.y]) == pytest.approx(oracle.y, rel=1e-9)
        assert list(pruner.z.values()) == pytest.approx(oracle.z, rel=1e-12)
        for ours, theirs in zip(weights, oracle.w, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        assert pruner.kept == sum(sizes) - sum(oracle.cut)
    assert (sum(oracle.s) > before) == (y == 0), "the case did not exercise its direction"


def test_the_learning_rate_of_the_proximal_step_is_the_optimizers():
    model = mlp().double()
    optimizer = torch.optim.SGD(
        [
            {"params": [model[0].weight, model[2].weight], "lr": 0.5},
            {"params": [model[4].weight], "lr": 0.01},
        ],
        lr=0.1,
    )
    pruner = MinimaxPruner(model, budget=0.3, optimizer=optimizer, first=True)
    pruner._y = [2.0]
    assert pruner._factors(0) == pytest.approx([1 / 3, 1 / 3, 1 / 1.04])
