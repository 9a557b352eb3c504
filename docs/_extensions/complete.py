"""A public name that is not described in full is a warning, and so fails a build with ``-W``.

Public is what stands in ``__all__`` of the modules below. The rules:

- a docstring of its own;
- every argument of a function or a constructor is described in it (in a record: every field), or it
  says "the arguments of" something whose docstring describes them;
- what takes or returns tensors says their shapes, in a ``Shapes`` section, as ``[N, *]`` in the
  text, or with "as the network takes it"; neurons, layers, losses, models and surrogates have the
  section;
- a function, or a class with a constructor, that takes arguments has a ``Raises`` section;
- every public method and property has a docstring;
- it is in the reference pages, under one of its public names.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator

from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from torch import nn

logger = logging.getLogger(__name__)

MODULES = (
    "sj_ext",
    "sj_ext.analysis",
    "sj_ext.ann2snn",
    "sj_ext.ann2snn.activation",
    "sj_ext.ann2snn.calibrate",
    "sj_ext.ann2snn.presets",
    "sj_ext.ann2snn.threshold",
    "sj_ext.checkpoint",
    "sj_ext.functional",
    "sj_ext.layer",
    "sj_ext.layer.attention",
    "sj_ext.loss",
    "sj_ext.memory",
    "sj_ext.model",
    "sj_ext.model.revsnn",
    "sj_ext.model.transformer",
    "sj_ext.model.transformer.attention_free",
    "sj_ext.model.transformer.autost",
    "sj_ext.model.transformer.dista",
    "sj_ext.model.transformer.sglformer",
    "sj_ext.model.transformer.sts",
    "sj_ext.model.transformer.swformer",
    "sj_ext.model.transformer.meta_spikeformer",
    "sj_ext.model.transformer.spikeformer",
    "sj_ext.model.transformer.spiking_resformer",
    "sj_ext.model.transformer.spikformer",
    "sj_ext.model.transformer.spikingformer",
    "sj_ext.model.trevsnn",
    "sj_ext.neuron",
    "sj_ext.neuron.published",
    "sj_ext.nir",
    "sj_ext.pruning",
    "sj_ext.pruning.resources",
    "sj_ext.search",
    "sj_ext.search.cost",
    "sj_ext.search.network.autosnn",
    "sj_ext.search.network.autost",
    "sj_ext.search.network.branchless",
    "sj_ext.search.network.snasnet",
    "sj_ext.search.score",
    "sj_ext.surrogate",
)

#: names and the rules that do not hold for them, each with the reason
EXEMPT: dict[str, dict[str, str]] = {
    "sj_ext.neuron.LearnableInitialPotential": {
        "shapes": "a mixin: the shapes are those of the neuron that it is mixed into"
    },
    "sj_ext.analysis.gradient_similarity": {"shapes": "its tensors are parameters, of any shape"},
    "sj_ext.pruning.History": {"raises": "takes names and checks nothing"},
}
#: names of methods that every module of the host has, and that its documentation explains
HOST_METHODS = {"extra_repr", "materialize_states"}


def check(reference: set[str] | None = None) -> Iterator[str]:
    """What is missing; ``reference`` are the names that the pages describe."""
    for place in MODULES:
        module = importlib.import_module(place)
        for name in module.__all__:
            thing, path = getattr(module, name), f"{place}.{name}"
            if inspect.ismodule(thing) or not callable(thing):
                continue
            if not str(thing.__module__).startswith("sj_ext"):
                continue  # the host's own, which is registered in place of ours
            exempt = EXEMPT.get(path, {})
            yield from (
                f"{path}: {problem}"
                for rule, problem in problems(thing)
                if rule not in exempt and rule.split()[0] not in exempt
            )
            if reference is not None and not reference & public_paths(thing):
                yield f"{path}: is in no page of the reference"


def own_names() -> dict[str, list[str]]:
    """For each module the names that are described there, which is one place for every object.

    Of the modules that have it, that is the outermost in whose folder it is defined, else the
    outermost.
    """
    homes: dict[int, tuple[bool, int, str, str]] = {}
    for place in MODULES:
        module = importlib.import_module(place)
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing) and thing.__module__.startswith("sj_ext"):
                outside = not f"{thing.__module__}.".startswith(f"{place}.")
                here = (outside, place.count("."), place, name)
                homes[id(thing)] = min(homes.get(id(thing), here), here)
    names: dict[str, list[str]] = {place: [] for place in MODULES}
    for *_, place, name in homes.values():
        names[place].append(name)
    return names


def public_paths(thing) -> set[str]:
    """All names under which an object is public."""
    modules = [importlib.import_module(place) for place in MODULES]
    return {
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if getattr(module, name) is thing
    }


def problems(thing) -> Iterator[tuple[str, str]]:
    """Pairs of a rule and how ``thing`` breaks it."""
    text = inspect.cleandoc(thing.__doc__ or "")
    generated = dataclasses.is_dataclass(thing) and text.startswith(f"{thing.__name__}(")
    if not text or generated:
        yield "docstring", "has no docstring"
        return
    arguments = own_arguments(thing)
    described = described_names(thing, text)
    for name in arguments:
        if name not in described:
            yield f"argument {name}", f"does not describe its argument {name!r}"
    in_text = re.search(r"``\[[^`]*\]``|as the (network|model) takes", text) is not None
    section = has_section(text, "Shapes")
    if isinstance(thing, type) and issubclass(thing, nn.Module) and not section:
        yield "shapes", "has no section Shapes"
    elif takes_tensors(thing) and not (section or in_text):
        yield "shapes", "takes or returns tensors and says nothing of their shapes"
    if arguments and not is_plain_record(thing) and not has_section(text, "Raises"):
        yield "raises", "has no section Raises"
    if isinstance(thing, type):
        for name, member in vars(thing).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if name.startswith("_") or not inspect.isfunction(function) or name in HOST_METHODS:
                continue
            if not function.__doc__ and not overrides(thing, name):
                yield "docstring", f"has no docstring for {name}"


def own_arguments(thing) -> list[str]:
    """Names of the arguments, those of the constructor for a class that has one of its own."""
    if isinstance(thing, type) and not is_record(thing) and "__init__" not in vars(thing):
        return []
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return []
    named = [
        p for p in parameters if p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
    ]
    return [p.name for p in named]


def described_names(thing, text: str) -> set[str]:
    """Names before a colon in ``Args`` or ``Attributes``, and fields with a comment."""
    names: set[str] = set()
    for match in re.finditer(r"^    ((?:\*{0,2}\w+(?:, )?)+):", text, re.M):
        names.update(part.strip("* ") for part in match[1].split(","))
    for other in re.findall(r"[Tt]he\s+arguments\s+of\s+:\w+:`~?([\w.]+)`", text):
        found = getattr(inspect.getmodule(thing), other.rpartition(".")[2])
        names |= described_names(found, inspect.cleandoc(found.__doc__ or ""))
    if is_record(thing):
        fields = ModuleAnalyzer.for_module(thing.__module__).find_attr_docs()
        names.update(name for owner, name in fields if owner == thing.__name__)
    return names


def has_section(text: str, name: str) -> bool:
    """Whether a docstring has a section."""
    return re.search(rf"^{name}:\s*$", text, re.M) is not None


def is_record(thing) -> bool:
    """Whether fields make the constructor: a dataclass or a named tuple."""
    return dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")


def is_plain_record(thing) -> bool:
    """A record that checks nothing."""
    return is_record(thing) and not hasattr(thing, "__post_init__")


def takes_tensors(thing) -> bool:
    """Whether an annotation of a function names a tensor."""
    if isinstance(thing, type):
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    annotations = [a.annotation for a in (*tree.args.args, *tree.args.kwonlyargs)]
    return any(a is not None and "Tensor" in ast.unparse(a) for a in (*annotations, tree.returns))


def overrides(thing: type, name: str) -> bool:
    """Whether a base class describes the member."""
    return any(getattr(vars(b).get(name), "__doc__", None) for b in thing.__mro__[1:])


def _check_environment(app, env):
    objects = set(env.domains["py"].objects)
    for problem in check(objects):
        logger.warning(problem, type="complete")


def setup(app):
    app.connect("env-check-consistency", _check_environment)
    return {"parallel_read_safe": True}
