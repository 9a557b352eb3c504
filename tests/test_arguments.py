"""Kinds of arguments by their annotations, and keywords of an earlier release."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import nn

import sj_ext
from sj_ext import analysis, ann2snn, host
from sj_ext.arguments import checked, renamed
from sj_ext.neuron import IMPLIFNode


@dataclass
class Size:
    width: int


@checked
def build(
    model: nn.Module,
    width: int = 1,
    rate: float | None = None,
    flag: bool = False,
    widths: Sequence[int] = (),
    pair: tuple[int, str] = (1, "a"),
    act: Callable[[torch.Tensor], torch.Tensor] | None = None,
    table: Mapping[str, float] | None = None,
    size: Size | str = "small",
    unknown: Unheard | None = None,  # noqa: F821
    plain=None,
    *rest: int,
    **more: int,
):
    """Take what it is given."""
    return width


RIGHT = {
    "width": (3, numpy.int64(3)),
    "rate": (3, 0.5, None, numpy.float32(1), float("inf")),
    "flag": (True,),
    "widths": ((), [1, 2], torch.Size((1, 2)), range(3)),
    "pair": ((1, "b"), [1, "b"]),
    "act": (torch.relu, nn.ReLU(), None),
    "table": ({}, None),
    "size": (Size(1), "large"),
    "unknown": (object(), None),
    "plain": (object(),),
}
WRONG = {
    "model": ("a", nn.Linear, None),
    "width": (2.0, True, None, "1", torch.ones(1)),
    "rate": ("a", True, 1j, [1.0]),
    "flag": (1, None, "a"),
    "widths": (1, "12", [1.0], [True], None, {1: 2}),
    "pair": ((1,), (1, 2), (1, "a", "b"), 1),
    "act": (1, "relu"),
    "table": ([], "a"),
    "size": (Size, 1, None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_values_of_the_kinds_that_an_annotation_names_go_in(name):
    for value in RIGHT[name]:
        build(nn.Identity(), **{name: value})


@pytest.mark.parametrize("name", WRONG)
def test_others_are_type_errors_that_name_argument_and_value(name):
    for value in WRONG[name]:
        arguments = {"model": nn.Identity(), name: value}
        with pytest.raises(TypeError, match=f"^{name} must be .*, got "):
            build(**arguments)


def test_words_say_what_is_allowed():
    with pytest.raises(TypeError, match=r"^rate must be a number or None, got 'a'$"):
        build(nn.Identity(), rate="a")
    with pytest.raises(TypeError, match=r"must be a sequence, each an integer, got \[0.5\]"):
        build(nn.Identity(), widths=[0.5])
    with pytest.raises(TypeError, match=r"^size must be a Size or text, got 3"):
        build(nn.Identity(), size=3)
    with pytest.raises(ValueError, match=r"^rate must be a finite number or None, got nan"):
        build(nn.Identity(), rate=float("nan"))


def test_a_wrong_call_is_pythons_own_error_and_the_signature_is_the_functions():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        build()
    assert list(inspect.signature(build).parameters)[:2] == ["model", "width"]
    assert build(nn.Identity(), 4, None, False, (), (1, "a"), None, None, "s", 1, 1, 7, x=8) == 4


def test_a_class_is_checked_by_its_constructor():
    made = checked(
        dataclass(type("Made", (), {"__annotations__": {"n": "int"}, "__module__": __name__}))
    )
    assert made(3).n == 3
    with pytest.raises(TypeError, match="^n must be an integer, got 'a'"):
        made("a")


def net():
    return nn.Sequential(nn.Linear(2, 2), host.neuron.LIFNode())


OLD = {
    "swap_neurons": ("module", lambda **old: sj_ext.swap_neurons(mapping=MAPPING, **old)),
    "parameter_groups": ("module", lambda **old: sj_ext.parameter_groups(weight_decay=0, **old)),
    "no_weight_decay": ("module", sj_ext.no_weight_decay),
    "gradient_similarity": (
        "network",
        lambda network: analysis.gradient_similarity(
            network=network, loss=lambda: network(torch.ones(1, 2)).sum()
        ),
    ),
    "replace_activations": (
        "net",
        lambda **old: ann2snn.replace_activations(kinds=nn.Linear, factory=nn.Identity, **old),
    ),
}
MAPPING = {host.neuron.LIFNode: IMPLIFNode}


@pytest.mark.parametrize("name", OLD)
def test_keywords_of_an_earlier_release_work_and_warn(name):
    keyword, call = OLD[name]
    with pytest.warns(DeprecationWarning, match=f"{keyword} of {name} is called model now") as seen:
        call(**{keyword: net()})
    assert seen[0].filename == __file__  # where the user can change it


def test_the_new_keyword_does_not_warn_and_both_at_once_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sj_ext.swap_neurons(model=net(), mapping=MAPPING) == 1
    with pytest.raises(TypeError, match="model is given twice, also by its old name module"):
        sj_ext.swap_neurons(model=net(), module=net(), mapping=MAPPING)


def test_a_network_is_called_model_wherever_a_public_function_takes_one():
    from public_calls import public

    #: pairs whose names tell which of two networks is which, and parts of a network
    others = {"snn", "ann", "reference", "small", "average", "node", "pool", "if_node", "stem"}
    others |= {"body", "head"}
    for name, thing in public().items():
        for parameter in inspect.signature(thing).parameters.values():
            if str(parameter.annotation).removesuffix(" | None") in ("nn.Module", "M"):
                assert parameter.name in others | {"model", "branches"}, (name, parameter.name)


def test_renamed_passes_everything_else_on():
    @renamed(old="new")
    def function(new, *args, other=1):
        return new, args, other

    assert function(1, 2, other=3) == (1, (2,), 3)
    with pytest.warns(DeprecationWarning):
        assert function(old=1) == (1, (), 1)
