"""Registration: the names are in SpikingJelly's namespaces, and come out without a trace."""

import importlib
import subprocess
import sys

import pytest

import sj_ext
from sj_ext import host, registration, when_imported
from sj_ext.host.generation import generation_of

HOST = "spikingjelly.activation_based"


@pytest.fixture
def taken_out():
    sj_ext.unregister()
    yield
    sj_ext.unregister()
    sj_ext.register()


def test_names_are_where_a_user_looks_for_them():
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    assert neuron.IMPLIFNode is sj_ext.neuron.IMPLIFNode
    assert neuron.TurnOnNode is sj_ext.neuron.TurnOnNode
    assert surrogate.DSpike is sj_ext.surrogate.DSpike
    assert surrogate.Rect is sj_ext.surrogate.Rect
    assert functional.lts_cross_entropy is sj_ext.functional.lts_cross_entropy
    assert layer.TemporalReversible is sj_ext.layer.TemporalReversible
    assert importlib.import_module(f"{HOST}.pruning") is sj_ext.pruning
    assert importlib.import_module(f"{HOST}.model.trevsnn") is sj_ext.model.trevsnn


def test_every_public_name_is_listed_with_its_place_and_owner():
    """The names are read off the packages: what ``__all__`` has is registered."""
    listed = {(entry.place, entry.name): entry.owner for entry in sj_ext.registered()}
    wanted = {(f"{HOST}.functional", n) for n in registration.ON_NETWORKS if hasattr(sj_ext, n)}
    for name in (*registration.INTO, *registration.INTO_WHEN_IMPORTED):
        if f"{HOST}.{name}" in sys.modules and hasattr(sj_ext, name):
            wanted |= {(f"{HOST}.{name}", public) for public in getattr(sj_ext, name).__all__}
    wanted |= {(HOST, name) for name in registration.WHOLE if hasattr(sj_ext, name)}
    assert set(listed) == wanted
    hosts_own = {key[1] for key, owner in listed.items() if owner == "spikingjelly"}
    assert hosts_own == ({"Rect", "attention"} if host.GENERATION == 2 else set())
    for place, name in listed:
        assert hasattr(sys.modules[place], name)


def test_what_the_readme_promises_is_in_the_hosts_namespaces():
    """Neurons, those of with_learnable_imp too, losses, layers, models and what goes with them."""
    from spikingjelly.activation_based import analysis, functional, layer, loss, model, neuron

    assert neuron.with_learnable_imp is sj_ext.neuron.with_learnable_imp
    assert functional.swap_neurons is sj_ext.swap_neurons
    assert functional.parameter_groups is sj_ext.parameter_groups
    assert loss.TETLoss is sj_ext.loss.TETLoss and layer.ScaledWSConv2d
    assert analysis.synaptic_operations is sj_ext.analysis.synaptic_operations
    assert model.trevsnn.TRevSNN is model.TRevSNN is sj_ext.model.TRevSNN
    assert importlib.import_module(f"{HOST}.loss") is sj_ext.loss


AGAIN = """
import sys
from spikingjelly.activation_based import neuron
import torch
import sj_ext
first, owners = neuron.IMPLIFNode, {(e.place, e.name): e.owner for e in sj_ext.registered()}
for name in [name for name in sys.modules if name.partition(".")[0] == "sj_ext"]:
    del sys.modules[name]
import sj_ext
assert neuron.IMPLIFNode is sj_ext.neuron.IMPLIFNode is not first
assert {(e.place, e.name): e.owner for e in sj_ext.registered()} == owners
from spikingjelly.activation_based.pruning import MinimaxPruner
assert MinimaxPruner is sj_ext.pruning.MinimaxPruner
for make in (first, neuron.IMPLIFNode, neuron.TurnOnNode):  # objects of both imports work
    node = make(step_mode="m")
    node(torch.rand(3, 2, 4, requires_grad=True)).sum().backward()
from sj_ext.ops.turn_on import op
x = torch.randn(3, 2, 4, requires_grad=True)
options = dict(v_threshold=0.5, surrogate_function=sj_ext.surrogate.Rect())
op.turn_on(x, None, torch.tensor([0.5]), **options)[0].sum().backward()
assert x.grad.any()
sj_ext.unregister()
assert not hasattr(neuron, "TurnOnNode")
print("clean")
"""


def test_the_package_can_be_imported_twice_in_one_process():
    """As notebooks and Streamlit do, which drop modules and import them again."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", AGAIN], capture_output=True)
    assert done.stdout.strip() == b"clean", done.stderr.decode()


@pytest.fixture
def somebodys_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "somebodys_module.py").write_text("value = 1\n")
    yield "somebodys_module"
    sys.modules.pop("somebodys_module", None)


def test_a_module_that_is_not_loaded_yet_gets_its_names_when_it_is(somebodys_module):
    before, seen = list(sys.meta_path), []
    when_imported.WhenImported(somebodys_module, lambda module: seen.append(module.value))
    assert not seen and somebodys_module not in sys.modules
    importlib.import_module(somebodys_module)
    assert seen == [1] and sys.meta_path == before
    when_imported.WhenImported(somebodys_module, lambda module: seen.append(module.value))
    assert seen == [1, 1] and sys.meta_path == before


def test_waiting_for_a_module_can_be_given_up(somebodys_module):
    before, seen = list(sys.meta_path), []
    waiting = when_imported.WhenImported(somebodys_module, seen.append)
    waiting.forget()
    waiting.forget()
    importlib.import_module(somebodys_module)
    assert not seen and sys.meta_path == before


def test_registering_again_changes_nothing():
    before = sj_ext.registered()
    assert sj_ext.register() == before and sj_ext.registered() == before


def test_a_name_of_the_host_is_never_replaced(taken_out, monkeypatch):
    class HostsOwn:
        pass

    monkeypatch.setattr(host.neuron, "TurnOnNode", HostsOwn, raising=False)
    listed = {entry.name: entry.owner for entry in sj_ext.register()}
    assert host.neuron.TurnOnNode is HostsOwn
    assert listed["TurnOnNode"] == "spikingjelly" and listed["IMPIFNode"] == "sj_ext"
    sj_ext.unregister()
    assert host.neuron.TurnOnNode is HostsOwn


def test_a_name_that_somebody_replaced_since_stays_theirs(taken_out):
    sj_ext.register()
    theirs = object()
    host.neuron.IMPIFNode = theirs
    sj_ext.unregister()
    assert host.neuron.IMPIFNode is theirs
    del host.neuron.IMPIFNode


def test_unregister_leaves_no_trace(tmp_path):
    """In a fresh process: every namespace of the host as it was before the import."""
    code = """
import sys
import spikingjelly.activation_based as root
from spikingjelly.activation_based import (
    ann2snn, base, functional, layer, model, neuron, surrogate,
)
places = [root, ann2snn, functional, layer, model, neuron, surrogate]
before = [dict(vars(place)) for place in places]
finders = list(sys.meta_path)
modules = {name for name in sys.modules if name.startswith("spikingjelly")}
import sj_ext
assert [dict(vars(place)) for place in places] != before
sj_ext.unregister()
for place, names in zip(places, before):
    assert dict(vars(place)) == names, place
assert {name for name in sys.modules if name.startswith("spikingjelly")} == modules
assert sj_ext.registered() == [] and sys.meta_path == finders
print("clean")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.stdout.strip() == b"clean", done.stderr.decode()


def test_import_stays_light():
    """No plotting, imaging or GPU library, and no part that only some need, nor what it needs."""
    code = """
import inspect, sys
import spikingjelly.activation_based.neuron
before, read = set(sys.modules), []
look = inspect.signature
inspect.signature = lambda f, **options: read.append(sys._getframe(1)) or look(f, **options)
import sj_ext
new = set(sys.modules) - before
print(sorted({name.partition(".")[0] for name in new} & {
    "matplotlib", "scipy", "sklearn", "torchvision", "timm", "cupy", "triton", "pandas",
    "tensorboard", "hypothesis", "h5py", "numba", "optuna",
}))
late = ("analysis", "ann2snn", "memory", "model", "pruning", "search")
print(sorted(name for name in new if name.startswith(tuple(f"sj_ext.{one}." for one in late))))
print(sorted(new & {
    "torch._dynamo", "torch.nn.utils.prune", "spikingjelly.activation_based.model",
    "spikingjelly.activation_based.ann2snn", "spikingjelly.activation_based.distributed.vision",
}))
print(sum(frame.f_globals["__name__"] == "sj_ext.arguments" for frame in read))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.stdout.split() == [b"[]", b"[]", b"[]", b"0"], done.stdout + done.stderr


LATE = ("analysis", "memory", "model", "pruning", "search")


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize(
    "ask",
    [
        "names = {one: getattr(package, one) for one in public}",
        "assert set(public) <= set(dir(package)); names = vars(package)",
        "names = {}; exec(f'from sj_ext.{name} import *', names)",
        "names = {one: getattr(importlib.import_module(f'{host}.{name}'), one) for one in public}",
    ],
)
def test_a_package_that_loads_late_has_its_names_whoever_asks_first(name, ask):
    """By attribute, by listing, all at once, and in the host's namespace; in a fresh process."""
    public = getattr(sj_ext, name).__all__
    code = f"""
import importlib, sys, sj_ext
name, host, public = {name!r}, {HOST!r}, {public!r}
package = getattr(sj_ext, name)
assert f"sj_ext.{{name}}.public" not in sys.modules
{ask}
late = importlib.import_module(f"sj_ext.{{name}}.public")
assert public == late.__all__ == package.__all__
assert all(names[one] is getattr(late, one) for one in public)
print("same")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.stdout.strip() == b"same", done.stderr.decode()


@pytest.mark.parametrize("name", LATE)
def test_a_name_that_a_late_package_lacks_is_said_as_python_says_it(name):
    with pytest.raises(AttributeError, match=f"'sj_ext.{name}' has no attribute 'nothing'"):
        getattr(sj_ext, name).nothing
    with pytest.raises(ImportError, match=f"cannot import name 'nothing' from 'sj_ext.{name}'"):
        exec(f"from sj_ext.{name} import nothing")


def test_threads_that_ask_a_late_package_first_together_all_get_the_name():
    code = """
import threading, sj_ext
start, found = threading.Barrier(8), []
def ask():
    start.wait()
    found.append(sj_ext.pruning.MinimaxPruner)
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert found == [sj_ext.pruning.MinimaxPruner] * 8
print("same")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.stdout.strip() == b"same", done.stderr.decode()


@pytest.mark.parametrize("version", ["0.0.0.0.12", "3.0.0", "0.0.0.0.4"])
def test_unsupported_host_version_is_refused(version):
    with pytest.raises(RuntimeError, match=f"0.0.0.0.14,<3.*{version}"):
        generation_of(version, host.base.MemoryModule)


def test_a_source_tree_between_the_generations_is_told_by_what_it_lacks_or_has_too_much():
    """Its version may well be a supported one, and says nothing then."""

    class Neither:
        pass

    class Both:
        supported_backends = materialize_states = None

    for kind, has in ((Neither, "has no supported_backends and no"), (Both, "has both")):
        with pytest.raises(RuntimeError, match=has) as raised:
            generation_of("2.0.0.dev1", kind)
        assert "source tree" in str(raised.value) and "2.0.0.dev1" in str(raised.value)


@pytest.mark.parametrize("first", ["sj_ext.ann2snn", f"{HOST}.ann2snn"])
def test_the_converters_names_are_there_whichever_module_is_imported_first(first):
    code = f"""
import importlib, sj_ext
importlib.import_module({first!r})
from spikingjelly.activation_based import ann2snn
assert ann2snn.convert is sj_ext.ann2snn.convert
print("same")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.stdout.strip() == b"same", done.stderr.decode()
