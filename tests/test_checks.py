"""Values at the door: the wrong kind is a TypeError, out of range a ValueError, in like words."""

import math

import numpy
import pytest
import torch
from torch import nn

from sj_ext import checks
from sj_ext.surrogate import Rect

NO_NUMBERS = ("a", None, True, [1.0], torch.ones(1), 1j, float, "1")


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="^tau must be a number above 1, got "):
        checks.number("tau", value, above=1)
    with pytest.raises(TypeError, match="^steps must be an integer of at least 1, got "):
        checks.integer("steps", value, at_least=1)


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf, 1, 1.0, -3, 3, numpy.float32(9)))
def test_a_number_out_of_range_is_a_value_error(value):
    with pytest.raises(ValueError, match="^tau must be .*above 1 and below 3, got "):
        checks.number("tau", value, above=1, below=3)


def test_bounds_are_open_or_closed_as_they_say():
    assert checks.number("x", 1, at_least=1, at_most=1) == 1.0
    assert isinstance(checks.number("x", numpy.float32(0.5)), float)
    assert isinstance(checks.integer("x", numpy.int64(3)), int)
    with pytest.raises(ValueError, match="^x must be between 0 and 1, got 1.5"):
        checks.number("x", 1.5, at_least=0, at_most=1)
    for wrong in (2.0, 0):
        with pytest.raises((TypeError, ValueError), match="at least 1"):
            checks.integer("x", wrong, at_least=1)


def test_choices_say_what_there_is():
    assert checks.choice("memory", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match=r"memory must be one of \('a', 'b'\), got 'c'"):
        checks.choice("memory", "c", ("a", "b"))
    for wrong in (1, None, ["a"], True):
        with pytest.raises(TypeError, match=r"memory must be one of \('a', 'b'\), got"):
            checks.choice("memory", wrong, ("a", "b"))


def test_shapes_sequences_and_flags():
    assert checks.shape("size", [2, 3], length=2) == (2, 3)
    assert checks.shape("size", torch.Size((4,))) == (4,)
    for wrong in ("23", 2, [2.0], [True], None):
        with pytest.raises(TypeError, match="size must be sizes above 0"):
            checks.shape("size", wrong)
    for wrong in ([0], [-1, 2], [1, 2, 3]):
        with pytest.raises(ValueError, match="size must be 2 sizes above 0"):
            checks.shape("size", wrong, length=2)
    assert checks.numbers("decay", torch.tensor([0.5, 1.0])) == (0.5, 1.0)
    with pytest.raises(TypeError, match=r"decay\[1\] must be"):
        checks.numbers("decay", [0.5, "a"])
    with pytest.raises(ValueError, match="decay must hold"):
        checks.numbers("decay", [])
    with pytest.raises(TypeError, match="detach must be True or False, got 1"):
        checks.flag("detach", 1)


def test_surrogates_functions_and_modules():
    rect = Rect()
    assert checks.surrogate(rect) is rect and checks.surrogate(torch.sigmoid)
    with pytest.raises(TypeError, match=r"not its class: write Rect\(\)"):
        checks.surrogate(Rect)
    with pytest.raises(TypeError, match="surrogate_function must be a surrogate"):
        checks.surrogate("rect")
    net = nn.Linear(2, 2)
    assert checks.module("model", net) is net and checks.module("layer", net, nn.Linear) is net
    for wrong in (nn.Linear, "net", torch.ones(1)):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got"):
            checks.module("model", wrong)
    with pytest.raises(TypeError, match="layer must be a Conv2d, got a Linear"):
        checks.module("layer", net, nn.Conv2d)


def test_tensors():
    x = torch.ones(2, 3)
    assert checks.floating("x", x, dims=(2, 3)) is x
    with pytest.raises(TypeError, match="x must be a tensor, got"):
        checks.tensor("x", [1.0])
    with pytest.raises(ValueError, match=r"x must have 3 axes, got shape \[2, 3\]"):
        checks.tensor("x", x, dims=3)
    with pytest.raises(TypeError, match="floating-point dtype, got torch.int64"):
        checks.floating("x", x.long())
