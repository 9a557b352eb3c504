"""Registration: the names are in SpikingJelly's namespaces, and come out without a trace."""

import importlib
import subprocess
import sys

import pytest

import sj_ext
from sj_ext import host, registration
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
    listed = {(entry.place, entry.name): entry.owner for entry in sj_ext.registered()}
    rect = "spikingjelly" if host.GENERATION == 2 else "sj_ext"
    assert listed.pop((f"{HOST}.surrogate", "Rect")) == rect
    assert set(listed.values()) == {"sj_ext"}
    names = sum(len(names) for _, names in registration.NAMES.values())
    assert len(listed) == names + sum(map(len, registration.SUBMODULES.values())) - 1
    for place, name in listed:
        assert hasattr(sys.modules[place], name)


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
modules = {name for name in sys.modules if name.startswith("spikingjelly")}
import sj_ext
assert [dict(vars(place)) for place in places] != before
sj_ext.unregister()
for place, names in zip(places, before):
    assert dict(vars(place)) == names, place
assert {name for name in sys.modules if name.startswith("spikingjelly")} == modules
assert sj_ext.registered() == []
print("clean")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.stdout.strip() == b"clean", done.stderr.decode()


def test_import_stays_light():
    """No plotting, imaging or GPU library is imported by importing the package."""
    code = """
import sys
import spikingjelly.activation_based.neuron
before = set(sys.modules)
import sj_ext
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"matplotlib", "scipy", "sklearn", "torchvision", "timm", "cupy", "triton",
                    "pandas", "tensorboard", "hypothesis"}))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.stdout.strip() == b"[]", done.stdout + done.stderr


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


def test_table_of_names_matches_the_packages():
    for source, names in registration.NAMES.values():
        assert set(names) <= set(source.__all__)
