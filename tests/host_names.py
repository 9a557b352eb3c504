"""What the host consists of, told in a process of its own; see ``test_host_unchanged.py``.

Run as a script it prints what the host's names and nodes are and do, for two processes to compare;
``--first`` imports the plugin before the host, ``--with`` after it, and ``--undone`` takes it out
again.
"""

import hashlib
import importlib
import inspect
import json
import pkgutil
import sys
import types
import warnings

import torch

warnings.simplefilter("ignore")
HOST = "spikingjelly.activation_based"


def host_modules():
    """Every module of the host that imports on this machine, by name; examples left out."""
    root = importlib.import_module(HOST)
    found = {HOST: root}
    for info in pkgutil.walk_packages(root.__path__, HOST + ".", onerror=lambda name: None):
        if ".examples" in info.name or info.name.endswith("_exchange") or ".nir_" in info.name:
            continue
        try:
            found[info.name] = importlib.import_module(info.name)
        except Exception:
            continue  # a GPU or an optional package that it asks for is not there
    return found


def contents(modules):
    """The objects behind every name of every module, and behind every attribute of its classes."""
    names = {}
    for place, module in modules.items():
        for name, value in vars(module).items():
            names[place, name] = value
            if isinstance(value, type) and value.__module__.startswith("spikingjelly"):
                names |= {(place, name, key): item for key, item in vars(value).items()}
    return names


def sources(names):
    """Where every function of the host was defined: a patched one would come from elsewhere."""
    places = {}
    for key, value in names.items():
        function = inspect.unwrap(value) if callable(value) else value
        if isinstance(function, types.FunctionType):
            code = function.__code__
            where = code.co_filename.rpartition("spikingjelly")[2]
            places[".".join(key)] = f"{where}:{code.co_firstlineno}:{len(code.co_code)}"
    return places


def behaviour(seed):
    """Outputs and gradients of every neuron and surrogate of the host that its defaults make."""
    modules = importlib.import_module(HOST)
    neuron, surrogate = modules.neuron, modules.surrogate
    results = {}
    for kind, namespace in (("neuron", neuron), ("surrogate", surrogate)):
        for name, cls in sorted(vars(namespace).items()):
            ours = "sj_ext" in getattr(cls, "__module__", "")
            if ours or not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
                continue
            torch.manual_seed(seed)
            try:
                module = cls()
                if hasattr(module, "step_mode"):
                    module.step_mode = "m"
                x = (torch.randn(4, 3, 5) * 1.5).requires_grad_()
                y = module(x)
                y.sum().backward()
            except Exception as error:
                results[f"{kind}.{name}"] = type(error).__name__
                continue
            tensors = [y, x.grad, *(p.grad for p in module.parameters())]
            parts = [b"-" if t is None else t.detach().numpy().tobytes() for t in tensors]
            results[f"{kind}.{name}"] = hashlib.sha256(b"|".join(parts)).hexdigest()
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--first" not in sys.argv:
        importlib.import_module(f"{HOST}.neuron")
    if {"--first", "--with"} & {*sys.argv}:
        import sj_ext

        if "--undone" in sys.argv:
            sj_ext.unregister()
    modules = {
        name: module for name, module in host_modules().items() if "sj_ext" not in module.__name__
    }
    # what the plugin puts in is left out here: the other test is about that
    names = {
        key: value
        for key, value in contents(modules).items()
        if "sj_ext" not in str(getattr(value, "__module__", "") or getattr(value, "__name__", ""))
    }
    report = {
        "names": sorted(".".join(key) for key in names if not isinstance(names[key], type(sys))),
        "sources": sources(names),
        "behaviour": behaviour(int(sys.argv[1])),
        "defaults": [str(torch.get_default_dtype()), str(torch.is_grad_enabled())],
    }
    print(json.dumps(report))
