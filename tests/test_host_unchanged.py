"""SpikingJelly with the plugin imported is the same SpikingJelly, and taken out it leaves nothing.

Each test runs in fresh processes, since this one has the plugin already.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


#: what both hosts make with their defaults, whichever release of PyTorch is installed
COMPUTED = {f"neuron.{name}Node" for name in ("EIF", "IF", "KLIF", "LIF", "ParametricLIF", "QIF")}
COMPUTED |= {f"surrogate.{name}" for name in ("ATan", "Erf", "PiecewiseQuadratic", "Sigmoid")}


def python(*arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, cwd=HERE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(seed, *flags):
    return json.loads(python("host_names.py", str(seed), *flags).splitlines()[-1])


def test_processes_without_with_and_no_longer_with_the_plugin_agree(seed):
    without = report(seed)
    assert len(without["names"]) > 500 and len(without["sources"]) > 300
    computed = {name for name, value in without["behaviour"].items() if len(value) == 64}
    assert computed >= COMPUTED
    for flags in (["--first"], ["--with", "--undone"]):
        other = report(seed, *flags)
        for part, wanted in without.items():
            assert other[part] == wanted, (flags, part)


CHECK = """
import sys
import torch
from host_names import contents, host_modules
before_modules = host_modules()
before = contents(before_modules)
in_sys = {name for name in sys.modules if name.startswith("spikingjelly")}
torch_names = {module: set(vars(module)) for module in (torch, torch.nn, torch.nn.functional)}

def same(one, other):
    return one is other or (type(one) is type(other) and isinstance(one, (int, str, float, tuple))
                            and one == other)

import sj_ext
after = contents({name: sys.modules[name] for name in before_modules})
changed = [key for key in before if key not in after or not same(before[key], after[key])]
assert not changed, changed
new = {key for key in after if key not in before and len(key) == 2}
listed = {(e.place, e.name) for e in sj_ext.registered() if e.owner == "sj_ext"}
assert new == listed, new ^ listed
for module, names in torch_names.items():
    assert set(vars(module)) == names, set(vars(module)) ^ names

# use it, in every way that might leave something behind in the host
from spikingjelly.activation_based import functional, layer, neuron
net = torch.nn.Sequential(layer.Linear(4, 4), neuron.LIFNode())
sj_ext.swap_neurons(net, {neuron.LIFNode: sj_ext.neuron.IMPLIFNode})
sj_ext.neuron.with_learnable_imp(neuron.QIFNode)
functional.set_step_mode(net, "m")
net(torch.rand(3, 2, 4)).sum().backward()
functional.reset_net(net)

for _ in range(2):
    sj_ext.unregister()
    after = contents({name: sys.modules[name] for name in before_modules})
    assert after.keys() == before.keys(), after.keys() ^ before.keys()
    changed = [key for key in before if not same(before[key], after[key])]
    assert not changed, changed
    new = {name for name in sys.modules if name.startswith("spikingjelly")} - in_sys
    # the host may have imported modules of its own when it was used
    assert all("sj_ext" not in sys.modules[name].__name__ for name in new), new
    assert in_sys <= sys.modules.keys()
    for name, module in before_modules.items():
        assert dir(module) == dir(sys.modules[name])
    sj_ext.register()
sj_ext.unregister()
print("clean", len(before_modules), len(before))
"""


def test_every_name_is_the_same_object_and_unregistering_leaves_no_trace():
    word, modules, names = python("-c", CHECK).split()[-3:]
    assert word == "clean" and int(modules) > 15 and int(names) > 1000
