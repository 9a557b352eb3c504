"""Firing patterns and pattern mapping against a neuron in exact fractions, train by train."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext import host
from sj_ext.analysis import (
    firing_patterns,
    pattern_mapping,
    plot_firing_patterns,
    plot_pattern_mapping,
)

neuron = host.neuron


# ---- the oracle ----------------------------------------------------------------------------------


def fire(inputs, v):
    """The spikes of an IF neuron, threshold 1, soft reset, in fractions."""
    spikes = []
    for x in inputs:
        v += x
        spikes.append(v >= 1)
        v -= spikes[-1]
    return tuple(spikes)


def reachable_pairs(v_inits, weights, steps=4):
    return {
        (fire([weight * bit for bit in train], v), train)
        for train in itertools.product((False, True), repeat=steps)
        for weight in weights
        for v in v_inits
    }


def index(train):
    return int("".join(str(int(bit)) for bit in train), 2)


def steps_between(low, high, count):
    return [low + (high - low) * Fraction(i, count - 1) for i in range(count)]


# ---- pattern mapping -----------------------------------------------------------------------------

WEIGHTS_17 = steps_between(0, 1, 17)
WEIGHTS_9 = steps_between(0, 1, 9)

#: V[0], weights, number of pairs as recorded in docs/concepts/initial_potential.md
SETTINGS = {
    "V[0] = 0": ([Fraction(0)], WEIGHTS_17, 54),
    "V[0] = 0.25": ([Fraction(1, 4)], WEIGHTS_17, 71),
    "V[0] in [-1, 1]": (steps_between(-1, 1, 9), WEIGHTS_9, 108),
}


def mapping(v_inits, weights):
    return pattern_mapping([float(v) for v in v_inits], [float(w) for w in weights])


@pytest.mark.parametrize("name", SETTINGS)
def test_reachable_pairs_of_the_papers_experiment(name):
    v_inits, weights, recorded = SETTINGS[name]
    reachable = mapping(v_inits, weights)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    for output, train in reachable_pairs(v_inits, weights):
        expected[index(output), index(train)] = True
    assert torch.equal(reachable, expected)
    assert int(reachable.sum()) == recorded


def test_more_initial_potentials_reach_more_pairs():
    numbers = [int(mapping(v_inits, weights).sum()) for v_inits, weights, _ in SETTINGS.values()]
    assert numbers[0] < numbers[1] < numbers[2]


@given(
    steps=st.integers(1, 5),
    v_inits=st.lists(st.integers(-24, 24), min_size=1, max_size=4),
    weights=st.lists(st.integers(-8, 24), min_size=1, max_size=4),
)
def test_mapping_of_any_potentials_weights_and_lengths(steps, v_inits, weights):
    v_inits = [Fraction(v, 16) for v in v_inits]
    weights = [Fraction(w, 16) for w in weights]
    reachable = pattern_mapping(
        torch.tensor([float(v) for v in v_inits]),
        torch.tensor([float(w) for w in weights]),
        num_steps=steps,
    )
    assert reachable.shape == (2**steps, 2**steps)
    pairs = {tuple(pair) for pair in reachable.nonzero().tolist()}
    assert pairs == {
        (index(output), index(train)) for output, train in reachable_pairs(v_inits, weights, steps)
    }


def test_mapping_of_another_node():
    """A leaky neuron that halves its potential; threshold 1, hard reset to 0, V[0] = 0.5."""
    node = neuron.LIFNode(tau=2.0, decay_input=False, v_reset=0.0)
    reachable = pattern_mapping(0.5, 0.75, num_steps=3, node=node)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    for train in itertools.product((0, 1), repeat=3):
        v, spikes = 0.5, []
        for bit in train:
            v = v / 2 + 0.75 * bit
            spikes.append(v >= 1)
            v *= v < 1
        expected[index(spikes), index(train)] = True
    assert torch.equal(reachable, expected)


# ---- firing patterns -----------------------------------------------------------------------------


@given(
    v_inits=st.lists(st.integers(-24, 24), min_size=1, max_size=5),
    currents=st.lists(st.integers(-8, 24), min_size=1, max_size=5),
    steps=st.integers(1, 9),
)
def test_constant_current(v_inits, currents, steps):
    patterns = firing_patterns(
        torch.tensor(currents) / 16, torch.tensor(v_inits)[:, None] / 16, num_steps=steps
    )
    assert patterns.shape == (steps, len(v_inits), len(currents))
    assert patterns.dtype == torch.bool
    for (row, v), (column, current) in itertools.product(enumerate(v_inits), enumerate(currents)):
        expected = fire([Fraction(current, 16)] * steps, Fraction(v, 16))
        assert tuple(patterns[:, row, column].tolist()) == expected


def test_initial_potentials_give_new_patterns():
    currents = torch.arange(17) / 16

    def distinct(v_init):
        return {tuple(train) for train in firing_patterns(currents, v_init).flatten(1).T.tolist()}

    at_zero = distinct(0.0)
    everywhere = distinct(torch.linspace(-1, 1, 9)[:, None])
    assert at_zero < everywhere
    assert distinct(None) == at_zero


def test_the_node_given_is_left_alone_and_its_own_potential_is_the_default():
    node = neuron.IFNode(v_reset=None)
    with torch.no_grad():
        node(torch.full((3,), 0.625))
    assert firing_patterns(0.5, node=node).flatten().tolist() == [False, True, False, True]
    assert torch.equal(node.v, torch.full((3,), 0.625))
    assert node.step_mode == "s"
    assert node.training


def test_modules_that_nodes_share_keep_their_flags():
    surrogate = neuron.IFNode().surrogate_function  # the default is one object for all nodes
    surrogate.train()
    firing_patterns(0.5)
    assert surrogate.training


def test_node_with_parameters_computes_in_their_dtype():
    node = neuron.ParametricLIFNode(init_tau=2.0, v_reset=None)
    assert firing_patterns([0.5, 2.5], 0.0, node=node).any(0).tolist() == [False, True]


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [firing_patterns, pattern_mapping])
def test_bad_values(function):
    with pytest.raises(ValueError, match=r"num_steps must be .*1.*, got 0"):
        function(0.5, 0.5, num_steps=0)
    with pytest.raises(TypeError, match="num_steps must be an int, got float"):
        function(0.5, 0.5, num_steps=2.0)
    with pytest.raises(ValueError, match="v_init.* must be .*finite"):
        function(*((0.5, float("nan")) if function is firing_patterns else (float("nan"), 0.5)))
    with pytest.raises(ValueError, match="is empty|must hold at least one"):
        function([], 0.5)
    with pytest.raises(TypeError, match="node must be a neuron of SpikingJelly, got Linear"):
        function(0.5, 0.5, node=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no potential v"):
        function(0.5, 0.5, node=host.layer.Dropout())


def test_mapping_of_too_many_steps():
    with pytest.raises(ValueError, match="from 1 to 12, got 13"):
        pattern_mapping(0.0, 0.5, num_steps=13)


def test_shapes_that_do_not_broadcast():
    with pytest.raises(ValueError, match=r"must broadcast, got the shapes \[2\] and \[3\]"):
        firing_patterns([0.5, 0.5], [0.0, 0.1, 0.2])


# ---- plots ---------------------------------------------------------------------------------------


def test_raster_shows_each_spike():
    patterns = firing_patterns(0.25, [0.0, 0.25, 0.5])
    axes = plot_firing_patterns(patterns, [0.0, 0.25, 0.5])
    drawn = [list(line.get_positions()) for line in axes.collections]
    assert drawn == [[4], [3], [2]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.0", "0.25", "0.5"]
    with pytest.raises(ValueError, match="labels must be 3.*got 2"):
        plot_firing_patterns(patterns, [0.0, 0.25])


def test_mapping_is_drawn_as_it_is():
    reachable = pattern_mapping(0.25, [0.5, 1.0], num_steps=3)
    axes = plot_pattern_mapping(reachable)
    (image,) = axes.images
    assert torch.equal(torch.from_numpy(image.get_array().data), reachable)
    assert str(int(reachable.sum())) in axes.get_title()
    assert axes.get_xticklabels()[3].get_text() == "011"
