"""What the modules of the package share between their users: constants, locks and safe caches."""

import copy
import enum
import importlib
import inspect
import pkgutil
import threading
import time
import types
import typing

import nodes
import pytest
import torch
from torch import nn

import sj_ext
from sj_ext import host, layer
from sj_ext.neuron import with_learnable_imp

#: everything in the package that could change, and why it may be there
ALLOWED = {
    "sj_ext.arguments._PLAIN": "a table that is only read",
    "sj_ext.arguments._SEVERAL": "a table that is only read",
    "sj_ext.analysis.energy._CONVOLUTIONS": "a table that is only read",
    "sj_ext.neuron.imp.OWN_KEYWORDS": "a table that is only read",
    "sj_ext.neuron.initial_potential.OWN_KEYWORDS": "a table that is only read",
    "sj_ext.model.trevsnn.published._WORDS": "a table that is only read",
    "sj_ext.pruning.resources.BUILT_IN": "a table that is only read",
    "sj_ext.neuron.imp._NAMED": "a table that is only read",
    "sj_ext.neuron.imp._MAKING": "a lock",
    "sj_ext.neuron.imp._learnable": "a cache of classes, filled under the lock",
    "sj_ext.ops.bits._BYTE_TO_MASKS": "a table that is only read",
    "sj_ext.ops.cuda._kernel": "a cache: compiling twice gives the same kernel",
    "sj_ext.ops.cuda._cupy": "a cache of an imported module",
    "sj_ext.ops.turn_on.launch.program": "a cache: reading a file twice gives the same text",
    "sj_ext.layer.haar._matrix": "a pure function's results, which every caller copies",
    "sj_ext.model.transformer.autost.NAMES": "a table that is only read",
    "sj_ext.model.transformer.meta_spikeformer.NAMES": "a table that is only read",
    "sj_ext.model.transformer.sglformer.NAMES": "a table that is only read",
    "sj_ext.model.transformer.sglformer.STAGES": "a table that is only read",
    "sj_ext.model.transformer.spikeformer.NAMES": "a table that is only read",
    "sj_ext.model.transformer.spiking_resformer.NAMES": "a table that is only read",
    "sj_ext.model.transformer.spikformer.NAMES": "a table that is only read",
    "sj_ext.model.transformer.spikformer.STAGES": "a table that is only read",
    "sj_ext.model.transformer.spikingformer.NAMES": "a table that is only read",
    "sj_ext.model.transformer.spikingformer.STAGES": "a table that is only read",
    "sj_ext.model.transformer.sts.NAMES": "a table that is only read",
    "sj_ext.model.transformer.swformer.NAMES": "a table that is only read",
    "sj_ext.model.transformer.swformer.STAGES": "a table that is only read",
    "sj_ext.layer.temporal_reversible.randomness._GENERATORS": "a lock",
    "sj_ext.pruning.masks._ATTACHED": "masks whose parameter may be replaced; weak",
    "sj_ext.pruning.masks._LISTING": "the lock of these",
    "sj_ext.pruning.masks._OF_PARAMETER": "which mask a parameter has; weak, so it ends with it",
    "sj_ext.pruning.optimizers._LISTENERS": "who is told of optimizers' steps: PyTorch's own hook",
    "sj_ext.pruning.selection.compiled.BITS": "a table that is only read",
    "sj_ext.pruning.selection.compiled.PLACES": "a table that is only read",
    "sj_ext.pruning.selection.compiled.scanner": "a cache: compiling twice gives the same function",
    "sj_ext.host.checked._CHECKS": "a table that is only read",
    "sj_ext.host.generation1._GENERATED": "a table that is only read",
    "sj_ext.host.generation.MARKS": "a table that is only read",
    "sj_ext.ann2snn.graph._CALLS": "a table that is only read",
    "sj_ext.ann2snn.operations._LINEAR_FUNCTIONS": "a table that is only read",
    "sj_ext.ann2snn.operations._LINEAR_METHODS": "a table that is only read",
    "sj_ext.ann2snn.operations._POOLING_CALLS": "a table that is only read",
    "sj_ext.ann2snn.operations._PRODUCTS": "a table that is only read",
    "sj_ext.ann2snn.operations._SIZES": "a table that is only read",
    "sj_ext.inference._STEPS": "a table that is only read",
    "sj_ext.memory.budget._UNITS": "a table that is only read",
    "sj_ext.memory.products._SAMPLES": "a table that is only read",
    "sj_ext.model.revsnn.former.NAMES": "a table that is only read",
    "sj_ext.model.revsnn.resnet.NAMES": "a table that is only read",
    "sj_ext.model.revsnn.resnet._STAGES": "a table that is only read",
    "sj_ext.model.trevsnn.model._WINDOWS": "a table that is only read",
    "sj_ext.parameters._WRAPPERS": "a table that is only read",
    "sj_ext.pruning.budgets.PREFIXES": "a table that is only read",
    "sj_ext.pruning.dependency.MOVING": "a table that is only read",
    "sj_ext.pruning.dependency.NORMALISING": "a table that is only read",
    "sj_ext.pruning.dependency.NO_DATA": "a table that is only read",
    "sj_ext.pruning.dependency.POOLING": "a table that is only read",
    "sj_ext.pruning.dependency.REDUCING": "a table that is only read",
    "sj_ext.pruning.dependency.VIEWS": "a table that is only read",
    "sj_ext.search.network.autosnn.NAMES": "a table that is only read",
    "sj_ext.search.network.snasnet._DATASETS": "a table that is only read",
    "sj_ext.search.space.autosnn.MACROS": "a table that is only read",
    "sj_ext.search.space.autost.SIZES": "a table that is only read",
    "sj_ext.model.revsnn.resnet.RevSResNet.published": "a table that is only read",
    "sj_ext.search.network.autosnn.AutoSNN.published": "a table that is only read",
    "sj_ext.memory.compact._TURN": "a lock",
    "sj_ext.memory.compact._compact_class": "a cache of classes",
    "sj_ext.parameters._ASKED": "a context variable",
    "sj_ext.registration._waiting": "as _registered: what register() waits for",
    "sj_ext.registration._registered": "what register() did, once, under the lock of the import",
}

#: what Python and the host put into classes
HOOKS_OF_PYTHON = {"_field_defaults", "_abc_impl"}
CONSTANT = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.GenericAlias,
    types.UnionType,
    typing.TypeVar,
    enum.Enum,
    str,
    bytes,
    int,
    float,
    complex,
    frozenset,
    torch.dtype,
    torch.device,
    type(None),
)


def packages_modules():
    yield sj_ext
    for info in pkgutil.walk_packages(sj_ext.__path__, "sj_ext."):
        yield importlib.import_module(info.name)


def may_change(value):
    if hasattr(value, "cache_clear"):
        return True
    if isinstance(value, tuple):
        return any(may_change(item) for item in value)
    plain = typing.get_origin(value) is None and type(value).__module__ != "typing"
    return plain and not isinstance(value, CONSTANT)


def found():
    """Names of all that could change in modules and in the bodies of classes."""
    for module in packages_modules():
        for name, value in vars(module).items():
            if name.startswith("__") or type(value).__module__ == "__future__":
                continue
            own = getattr(value, "__module__", module.__name__) or ""
            if own.startswith("sj_ext") and own != module.__name__ and hasattr(value, "__name__"):
                continue  # imported from the module where it is looked at
            if may_change(value):
                yield f"{module.__name__}.{name}"
            if isinstance(value, type) and value.__module__ == module.__name__:
                for key, item in vars(value).items():
                    plain = not (key.startswith("__") or hasattr(type(item), "__get__"))
                    if plain and key not in HOOKS_OF_PYTHON and may_change(item):
                        yield f"{module.__name__}.{name}.{key}"


def test_nothing_that_can_change_is_shared_but_what_is_listed():
    assert set(found()) == set(ALLOWED)


def test_default_arguments_hold_nothing_that_can_change_but_surrogates():
    """The host's habit; a node of ours that is given none takes a copy of its own."""
    shared = set()
    for module in packages_modules():
        for value in vars(module).values():
            callables = [value] if isinstance(value, types.FunctionType) else []
            if isinstance(value, type) and value.__module__.startswith("sj_ext"):
                callables += [f for f in vars(value).values() if isinstance(f, types.FunctionType)]
            for function in callables:
                if not (function.__module__ or "").startswith("sj_ext"):  # torch.compile's
                    continue
                for parameter in inspect.signature(function).parameters.values():
                    default = parameter.default
                    made_anew = default is parameter.empty or repr(default) == "<factory>"
                    if not made_anew and may_change(default):
                        shared.add(parameter.name)
    assert shared == {"surrogate_function"}


GIVEN_NONE = [
    name
    for name, contract in nodes.PLUGIN.items()
    if "surrogate_function" not in getattr(contract.make, "keywords", {})
]


@pytest.mark.parametrize("name", GIVEN_NONE)
def test_nodes_that_are_given_no_surrogate_have_one_each(name):
    make = nodes.PLUGIN[name].make
    one, other = make(), make()
    first, second = one.surrogate_function, other.surrogate_function
    assert first is not second and repr(first) == repr(second)
    before = copy.deepcopy(vars(second))
    first.mark, first.spiking = "of one", False
    assert vars(second).keys() == before.keys() and second.spiking


def test_a_cell_and_a_node_made_from_one_that_exists_have_a_surrogate_of_their_own():
    cells = [layer.TemporalReversible([nn.Identity()], [0.5]) for _ in range(2)]
    assert cells[0].surrogate_function is not cells[1].surrogate_function
    hosts = host.neuron.QIFNode()
    made = with_learnable_imp(host.neuron.QIFNode).from_node(hosts)
    assert made.surrogate_function is not hosts.surrogate_function
    assert repr(made.surrogate_function) == repr(hosts.surrogate_function)


def test_a_surrogate_that_is_given_is_taken_as_it_is():
    given = sj_ext.surrogate.DSpike(2.0)
    for make in (sj_ext.neuron.IMPLIFNode, sj_ext.neuron.TurnOffNode):
        assert make(surrogate_function=given).surrogate_function is given


def test_threads_that_make_a_class_at_once_get_the_same_one():
    for _ in range(3):

        class Own(host.neuron.IFNode):
            def __init_subclass__(cls):
                time.sleep(1e-3)  # long enough for another thread to ask

        made, start = [], threading.Barrier(4)

        def make(node_class=Own, made=made, start=start):
            start.wait()
            made.append(with_learnable_imp(node_class))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 1 and len(made) == 4


def test_tables_that_are_only_read_stay_as_they_were():
    from sj_ext.neuron import imp
    from sj_ext.ops import bits

    before = bits._BYTE_TO_MASKS.clone(), dict(imp._NAMED), dict(imp.OWN_KEYWORDS)
    mask = torch.rand(1000) < 0.5
    unpacked = bits.unpack_bits(bits.pack_bits(mask), (1000,))
    unpacked.logical_not_()  # the caller's own
    bits.keep_where_bits(bits.pack_bits(mask), torch.randn(1000)).zero_()
    node = sj_ext.neuron.IMPLIFNode.from_node(host.neuron.LIFNode(), imp_shape="layer")
    node.imp_init = None
    assert torch.equal(bits._BYTE_TO_MASKS, before[0])
    assert before[1:] == (imp._NAMED, imp.OWN_KEYWORDS)
