"""A module of ours beside a recording of the public program: outputs, gradients, buffers."""

from __future__ import annotations

import ast
import json
import pathlib

import numpy
import torch
from published.cases import build

OUTPUT, GRADIENT, BUFFER = 1e-5, 2e-4, 1e-5


def differences(path: pathlib.Path) -> list[str]:
    """What differs by more than rounding, relative to each array's largest value."""
    recording = numpy.load(path)
    config = _config(recording)
    state = {k[6:]: torch.from_numpy(v) for k, v in _under(recording, "param/")}
    x, w = torch.from_numpy(recording["x"]), torch.from_numpy(recording["w"])

    module, _ = build(path.stem, config, state)
    found = []
    if "y" in recording.files:
        with torch.no_grad():
            found += _compare("y", _first(module.eval()(x)), recording["y"], OUTPUT)
    module, tensors = build(path.stem, config, state)
    x = x.clone().requires_grad_()
    y = _first(module.train()(x))
    found += _compare("y_train", y, recording["y_train"], OUTPUT)
    (y * w).sum().backward()
    for key in recording.files:
        if key.startswith("grad/") or key == "grad_x":
            name = "x" if key == "grad_x" else key[5:]
            if path.stem.startswith("revsnn_former") and name.endswith("_conv.bias"):
                continue  # a bias before a norm: 0, of which the program has the rounding
            grad = (x if name == "x" else tensors[name]).grad
            found += _compare(f"gradient of {name}", grad, recording[key], GRADIENT)
    once = "after_once/" if _under(recording, "after_once/") else "after/"  # statistics move once
    for prefix in (once, "after_train/"):
        for key, value in _under(recording, prefix):
            name = key.removeprefix(prefix)
            if name in tensors:
                found += _compare(f"buffer {name}", tensors[name], value, BUFFER)
    return found


def _config(recording) -> dict:
    if "meta" in recording.files:
        return json.loads(str(recording["meta"]))
    return ast.literal_eval(str(recording["cfg"])) if "cfg" in recording.files else {}


def _under(recording, prefix):
    return [(k, numpy.array(recording[k])) for k in recording.files if k.startswith(prefix)]


def _first(y):
    return y[0] if isinstance(y, tuple) else y


def _compare(what, got, want, limit) -> list[str]:
    if got is None:
        return [f"{what}: none"]
    got, want = got.detach().double().numpy(), numpy.asarray(want, dtype=numpy.float64)
    if got.shape != want.shape:
        return [f"{what}: shape {got.shape} for {want.shape}"]
    error = float(abs(got - want).max() / max(abs(want).max(), 1e-6))
    return [] if error <= limit else [f"{what}: {error:.1e}"]
