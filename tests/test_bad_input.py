"""The same mistake is the same error at every door: kind a TypeError, range a ValueError, by name.

Every public function and constructor is called with one argument wrong at a time. What an argument
may be is read from its annotation; a small call that is right comes from ``public_calls.py``.
"""

import ast
import functools
import inspect
import math
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import public_calls
import pytest
import torch
from torch import nn

import sj_ext

PUBLIC = public_calls.public()

#: names that are not called here, and why
EXEMPT = {
    "neuron.LearnableInitialPotential": "a mixin that needs a neuron: IMPIFNode and others",
}
#: a call that is right imports half of PyTorch's compiler
SLOW = {"ExplicitState"}
#: calls that stop at a file or at weights of a public program, which this test has not
STOPS = {
    "checkpoint.load_checkpoint",
    "checkpoint.save_checkpoint",
    "model.revsnn.load_published",
    "model.transformer.load_published",
    "model.trevsnn.load_published",
    "model.trevsnn.published_arguments",
    "model.trevsnn.published_state_dict",
    "layer.fuse",
    "pruning.carry_over",
    "pruning.shrink",
}
#: arguments that go on, of any kind, to the user's network or library
PASSED_ON = {"example_input", "loader", "data", "calibration", "sampler", "train_loader"}
PASSED_ON |= {"val_loader", "writer"}

#: one value of each kind, none of which means anything to the package
KINDS = {
    "str": "no such",
    "none": None,
    "bool": True,
    "float": 1.5,
    "complex": 1j,
    "list": [object()],
    "object": object(),
    "module": nn.Identity(),
    "class": nn.Identity,
}
#: numbers that few arguments take
STRANGE = {"int": (-1, 0), "float": (math.nan, -1.0, 0.0)}
ANY = {*KINDS, *STRANGE}
#: which kinds go with a word of an annotation; what is not here takes none of the values above
TAKES = {
    "None": {"none"},
    "int": {"int"},
    "float": {"int", "float"},
    "bool": {"bool"},
    "str": {"str"},
    "nn.Module": {"module"},
    "M": {"module"},
    "Sequence": {"list"},
    "Iterable": {"list"},
    "Collection": {"list"},
    "list": {"list"},
    "tuple": {"list"},
    "type": {"class"},
    "Path": {"str"},
    "os.PathLike": {"str"},
    **dict.fromkeys(("Any", "Budget", "Chooser", "Resources"), ANY),
    **{word: {"module", "class"} for word in ("Callable", "Encoder", "Evaluate", "Loss")},
    **{word: {"module", "class"} for word in ("Draw", "Repair", "Wrong", "NeuronFactory")},
    **{word: {"module", "class"} for word in ("Projection", "Surrogate", "SurrogateFunctionBase")},
}


@pytest.fixture
def traceless(monkeypatch, tmp_path):
    """Names that a call takes out of the host's namespaces come back; files are left elsewhere."""
    monkeypatch.chdir(tmp_path)
    yield
    sj_ext.register()


@pytest.mark.usefixtures("traceless")
@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in EXEMPT])
def test_every_argument_is_checked(name):
    thing = PUBLIC[name]
    try:
        if name not in SLOW:
            call(name, thing, {})
    except (OSError, RuntimeError, ValueError):
        assert name in STOPS  # otherwise the call in public_calls.py is not right any more
    wrong = []
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            for value, allowed, needed in mistakes(parameter):
                problem = verdict(name, thing, parameter.name, value, allowed, needed)
                if problem:
                    wrong.append(f"{parameter.name}={value!r}: {problem}")
    assert not wrong, "\n".join(wrong)


def test_the_judge_sees_bare_errors_and_silence():
    def bare(width):
        return width + 1

    def silent(width):
        return None

    def other(width):
        raise ValueError("height must be above 0, got 0")

    seen = {bare: "bare TypeError", silent: "accepted", other: "not TypeError"}
    for function, what in seen.items():
        assert what in verdict("x", function, "width", "a", (TypeError,), True, {})
    assert "is not named" in verdict("x", other, "width", 0, (ValueError,), False, {})


def mistakes(parameter: inspect.Parameter) -> Iterator[tuple[Any, tuple[type, ...], bool]]:
    """Values for an argument, the errors that may come, and whether one has to."""
    right = taken(parameter)
    if right == ANY:
        if parameter.name not in PASSED_ON:
            for value in KINDS.values():
                yield value, (TypeError, ValueError, RuntimeError), False
        return
    for kind, value in KINDS.items():
        if kind not in right:
            yield value, (TypeError,), True
        elif kind in ("str", "list"):  # of the right kind, and still not what is meant
            yield value, (TypeError, ValueError, OSError), False
    for kind, values in STRANGE.items():
        if kind in right:
            for value in values:
                yield value, (ValueError,), math.isnan(value)


def taken(parameter: inspect.Parameter) -> set[str]:
    """Kinds of the values that an argument takes, by its annotation or its default."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is parameter.empty:
        annotation = type(default).__name__
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"^(?:typing\.)?Optional\[(.*)\]$", r"\1 | None", text)
    found: set[str] = set()
    for word in re.split(r"\s*\|\s*(?![^\[]*\])", text):
        outer = word.partition("[")[0]
        found |= TAKES.get(outer, TAKES.get(outer.rpartition(".")[2], set()))
    if parameter.name == "v_reset":  # 0.0.0.0.14 takes None and does not say so
        found.add("none")
    return found


def verdict(
    name: str,
    thing: Any,
    argument: str,
    value: Any,
    allowed: tuple[type, ...],
    needed: bool,
    known: dict[str, Any] | None = None,
) -> str | None:
    """What is wrong with how a value is taken, if anything is."""
    try:
        call(name, thing, {argument: value}, known)
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:120]}"
        if not raised_on_purpose(error):
            return f"bare {told}"
        if not isinstance(error, allowed):
            return f"not {' or '.join(each.__name__ for each in allowed)} but {told}"
        if argument not in str(error):
            return f"is not named in {told}"
        shown = "got" in str(error) or repr(value) in str(error)
        return None if shown else f"is not shown in {told}"
    return "accepted" if needed else None


def call(
    name: str, thing: Any, changes: dict[str, Any], known: dict[str, Any] | None = None
) -> Any:
    """The right call of a name with other arguments; networks are built on the meta device."""
    arguments = public_calls.example(name, thing) if known is None else known
    small = "model" in arguments or not name.startswith(("layer.", "model.", "search.network."))
    parameters, before, named = inspect.signature(thing).parameters, [], {}
    for key, value in (arguments | changes).items():
        kind = parameters[key].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            before.extend(value)
        elif kind is inspect.Parameter.POSITIONAL_ONLY or "example_inputs" in parameters:
            before.append(value)
        else:
            named[key] = value
    with torch.device("cpu" if small else "meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return thing(*before, **named)


def raised_on_purpose(error: Exception) -> bool:
    """Whether a ``raise`` made it, of the package or of what it is built on."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_file() and last.lineno in raising_lines(last.filename)


@functools.cache
def raising_lines(filename: str) -> frozenset[int]:
    """The lines of a file that stand in a ``raise``."""
    tree = ast.parse(Path(filename).read_text())
    raising = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return frozenset(i for node in raising for i in range(node.lineno, node.end_lineno + 1))
