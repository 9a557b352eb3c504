"""Strategies on tables of all 3,125 architectures, made from seeds."""

import itertools
import random

import numpy
import pytest

from sj_ext.search import (
    Constraint,
    autosnn,
    autost,
    evolution_as_published,
    optuna_search,
    random_search,
    snasnet,
    spike_aware,
)
from sj_ext.search.space.autost import candidate
from sj_ext.search.strategy import crossed, mutated

SPACE = autosnn()


def table(seed):
    """A smooth landscape: an effect of every slot, weaker ones of pairs, a little noise."""
    rng = numpy.random.default_rng(seed)
    single = rng.normal(size=(5, 5))
    pair = {p: rng.normal(size=(5, 5)) * 0.3 for p in itertools.combinations(range(5), 2)}
    noise = rng.normal(size=3125) * 0.05
    values = numpy.empty(3125)
    for number in range(3125):
        digits = [number // 5**i % 5 for i in range(5)]
        values[number] = sum(single[i, d] for i, d in enumerate(digits)) + noise[number]
        values[number] += sum(t[digits[i], digits[j]] for (i, j), t in pair.items())
    return values


def lookup(values):
    return lambda architecture: float(values[SPACE.index(architecture)])


@pytest.mark.parametrize("seed", range(4))
def test_evolution_finds_the_optimum_in_400_evaluations(seed):
    values, asked = table(seed), []

    def evaluate(architecture):
        asked.append(architecture)
        return lookup(values)(architecture)

    found = evolution_as_published(SPACE, evaluate, seed=seed)
    assert len(asked) == len(set(asked)) == 400
    assert found.value == values.max()
    assert SPACE.index(found.best) == values.argmax()


@pytest.mark.parametrize("seed", range(4))
def test_optuna_finds_it_in_fewer_different_ones(seed):
    values = table(seed)
    study = optuna_search(SPACE, lookup(values), trials=400, seed=seed)
    different = {trial.user_attrs["architecture"] for trial in study.trials}
    assert len(different) < 400
    assert study.best_value == values.max()


def test_random_search_draws_without_repeats():
    found = random_search(SPACE, lookup(table(0)), trials=50, seed=3)
    assert len({architecture for architecture, _ in found.history}) == 50
    assert found.value == max(value for _, value in found.history)
    small = snasnet("forward")
    again = random_search(small, len, trials=5, seed=3)
    assert again == random_search(small, len, trials=5, seed=3)


@pytest.mark.parametrize("search", [random_search, evolution_as_published])
def test_a_search_that_was_stopped_goes_the_same_way(search, tmp_path):
    values, record = table(1), tmp_path / "record.json"
    size = {"trials": 60} if search is random_search else {"generations": 3}
    whole = search(SPACE, lookup(values), seed=5, **size)
    left = random.Random(0).randrange(5, 50)

    def stopping(architecture):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return lookup(values)(architecture)

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, stopping, seed=5, record=record, **size)
    asked = []

    def counting(architecture):
        asked.append(architecture)
        return lookup(values)(architecture)

    assert search(SPACE, counting, seed=5, record=record, **size) == whole
    assert len(asked) < len(whole.history)


def test_optuna_goes_on_in_its_storage(tmp_path):
    arguments = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "a", "seed": 1}
    optuna_search(SPACE, lookup(table(2)), trials=10, **arguments)
    asked = []

    def evaluate(architecture):
        asked.append(architecture)
        return lookup(table(2))(architecture)

    study = optuna_search(SPACE, evaluate, trials=15, **arguments)
    assert len(study.trials) == 15 and len(asked) <= 5
    with pytest.raises(ValueError, match="study_name"):
        optuna_search(snasnet(), lookup(table(2)), trials=20, **arguments)


def test_several_objectives_give_a_front():
    values, spikes = table(0), table(1)
    study = optuna_search(
        SPACE,
        lambda a: (values[SPACE.index(a)], spikes[SPACE.index(a)]),
        trials=60,
        seed=0,
        directions=("maximize", "minimize"),
    )
    front = {tuple(trial.values) for trial in study.best_trials}
    for a, b in itertools.permutations(front, 2):
        assert not (a[0] >= b[0] and a[1] <= b[1])


def test_limits_hold_and_impossible_ones_are_said_first():
    values, asked = table(0), []

    def evaluate(architecture):
        asked.append(architecture)
        return lookup(values)(architecture)

    def skips(architecture):
        return float(sum(gene != "skip" for gene in architecture if gene != "pool"))

    limit = Constraint(skips, 3, "blocks")
    for search, size in (
        (evolution_as_published, {"generations": 3}),
        (random_search, {"trials": 30}),
    ):
        asked.clear()
        search(SPACE, evaluate, seed=0, constraints=[limit], **size)
        assert asked and all(skips(a) <= 3 for a in asked)
    asked.clear()
    optuna_search(SPACE, evaluate, trials=40, seed=0, constraints=[limit])
    assert all(skips(a) <= 3 for a in asked)
    asked.clear()
    for search, size in ((evolution_as_published, {}), (random_search, {"trials": 30})):
        with pytest.raises(ValueError, match="blocks of at most -1"):
            search(SPACE, evaluate, seed=0, constraints=[Constraint(skips, -1, "blocks")], **size)
    assert not asked


def test_two_processes_do_not_share_a_record(tmp_path):
    record = tmp_path / "record.json"

    def evaluate(architecture):
        if record.exists():
            record.write_text(record.read_text() + " ")
        return 0.0

    with pytest.raises(RuntimeError, match="another process"):
        random_search(SPACE, evaluate, trials=5, seed=0, record=record)


def test_mutants_and_children():
    rng = random.Random(4)
    a, b = SPACE.sample(rng), SPACE.sample(rng)
    assert mutated(SPACE, a, rng, 1.0).genes[1] == "pool"
    assert all(x != y for x, y in zip(mutated(SPACE, a, rng, 1.0), a, strict=True) if y != "pool")
    for _ in range(20):
        child = crossed(SPACE, a, b, rng).genes
        assert any(child == a.genes[:cut] + b.genes[cut:] for cut in range(1, 8))


def test_mutants_and_children_stay_in_a_space_of_any_depth():
    """Parents of unequal depth have a child of one depth, with a gene for each of its blocks."""
    space, rng = autost("tiny"), random.Random(1)
    for _ in range(60):
        a, b = space.sample(rng), space.sample(rng)
        for made in (crossed(space, a, b, rng), mutated(space, a, rng, 0.4)):
            assert space.valid(made) == made
            found = candidate(made.genes)
            assert len(found.ratios) == len(found.heads) == made.genes[0]


def test_fitness():
    assert spike_aware(0.9, 200, 100, -1) == pytest.approx(0.45)
    assert spike_aware(0.9, 200, 100, 0) == 0.9
    for wrong in ({"spikes": 0}, {"reference": -1}, {"exponent": 0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            spike_aware(**{"accuracy": 0.9, "spikes": 1, "reference": 1} | wrong)


def test_bad_input(tmp_path):
    for search, size in (
        (random_search, {"trials": 3}),
        (optuna_search, {"trials": 3}),
        (evolution_as_published, {}),
    ):
        with pytest.raises(TypeError, match="seed"):
            search(SPACE, len, seed=None, **size)
    with pytest.raises(TypeError, match="space"):
        random_search("autosnn", len, trials=3, seed=0)
    with pytest.raises(TypeError, match="evaluate"):
        random_search(SPACE, 3, trials=3, seed=0)
    with pytest.raises(ValueError, match="trials"):
        random_search(SPACE, len, trials=0, seed=0)
    with pytest.raises(ValueError, match="the value of evaluate"):
        random_search(SPACE, lambda a: float("nan"), trials=3, seed=0)
    with pytest.raises(ValueError, match="directions"):
        optuna_search(SPACE, len, trials=3, seed=0, directions=("up",))
    record = tmp_path / "record.json"
    random_search(SPACE, len, trials=3, seed=0, record=record)
    with pytest.raises(ValueError, match="record"):
        random_search(snasnet(), len, trials=3, seed=0, record=record)
