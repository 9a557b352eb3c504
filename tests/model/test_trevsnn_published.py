"""The paper's own program: its recorded outputs and gradients, and its weights in and out.

The recordings are of its network at small widths, in float64 (gradients rounded to float16, which
is what the tolerance of theirs is for).
"""

import json
from pathlib import Path

import numpy
import pytest
import torch
from torch.nn.functional import cross_entropy

from sj_ext.model import TRevSNN
from sj_ext.model.trevsnn import (
    load_published,
    published_arguments,
    published_state_dict,
    published_to_ours,
)

RECORDINGS = Path(__file__).parent / "recordings"
#: images with large and with the program's own weights; events with the program's first weights
ALL = ("small", "init_std002", "events_zero_bias")


def recording(name):
    """The recorded arrays, with state dict and gradients as dictionaries."""
    with numpy.load(RECORDINGS / f"trevsnn_{name}.npz") as arrays:
        numbers = ("x", "target", "eval", "train", "loss", "state")
        data = {key: torch.from_numpy(numpy.array(arrays[key])) for key in numbers}
        shapes = json.loads(str(arrays["names"]))
        data["state"] = split(data["state"], shapes)
        grad = torch.from_numpy(arrays["grad"].astype(float)) * float(arrays["grad_scale"])
        data["grad"] = split(grad, {key: shapes[key] for key in json.loads(str(arrays["graded"]))})
    return data


def split(flat, shapes):
    sizes = [int(numpy.prod(shape)) for shape in shapes.values()]
    parts = zip(shapes.items(), flat.split(sizes), strict=True)
    return {name: part.reshape(shape) for (name, shape), part in parts}


def loaded(data, **options):
    net = TRevSNN(**published_arguments(data["state"]), **options)
    return load_published(net, data["state"]).double()


def training_loss(net, data):
    """The program's own: later steps weigh more, and the last one counts once more."""
    x = data["x"].double()
    y_seq = net(x.transpose(0, 1) if net.events else x)
    last = cross_entropy(y_seq[-1], data["target"])
    if net.events:
        return y_seq, last
    losses = [cross_entropy(y, data["target"]) for y in y_seq]
    return y_seq, sum(loss * (i + 1) / len(y_seq) for i, loss in enumerate(losses)) + last


@pytest.mark.parametrize("memory", ["reversible", "autograd"])
@pytest.mark.parametrize("name", ALL)
def test_recorded_outputs_and_gradients_are_met(name, memory):
    data = recording(name)
    net = loaded(data, memory=memory).eval()
    x = data["x"].double()
    with torch.no_grad():
        y_seq = net.step_logits(x.transpose(0, 1) if net.events else x)
    torch.testing.assert_close(y_seq, data["eval"], rtol=0, atol=1e-10)
    y_seq, loss = training_loss(net.train(), data)
    torch.testing.assert_close(y_seq, data["train"], rtol=0, atol=1e-10)
    torch.testing.assert_close(loss, data["loss"], rtol=0, atol=1e-10)
    loss.backward()
    got, want = gradients(net, data)
    assert (got - want).norm() <= 1e-3 * want.norm()


def test_the_open_window_differs_where_potentials_lie_on_its_edge():
    """Frames without events and biases of 0: percents of the whole gradient."""
    data = recording("events_zero_bias")
    net = loaded(data, window="open").train()
    training_loss(net, data)[1].backward()
    got, want = gradients(net, data)
    assert (got - want).norm() > 5e-3 * want.norm()


def gradients(net, data):
    parameters = dict(net.named_parameters())
    names = list(published_to_ours(data["grad"]))
    got = [parameters[name].grad.flatten() for name in names]
    return torch.cat(got), torch.cat([grad.flatten() for grad in data["grad"].values()])


def test_float32_at_the_programs_own_scale_is_close():
    data = recording("init_std002")
    net = loaded(data).float().eval()
    with torch.no_grad():
        y_seq = net.step_logits(data["x"])
    torch.testing.assert_close(y_seq.double(), data["eval"], rtol=0, atol=2e-6)


def test_where_eps_is_added_matters():
    data = recording("init_std002")
    net = TRevSNN(**published_arguments(data["state"]), eps_in="sum").double().eval()
    net.load_state_dict(published_to_ours(data["state"]))
    with torch.no_grad():
        y_seq = net.step_logits(data["x"].double())
    assert (y_seq - data["eval"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_a_state_dict_comes_out_as_it_went_in(name):
    state = recording(name)["state"]
    out = published_state_dict(loaded({"state": state}))
    assert out.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(out[key], value.to(out[key].dtype), rtol=0, atol=0)
    distributed = {f"module.{key}": value for key, value in state.items()}
    assert published_to_ours(distributed).keys() == published_to_ours(state).keys()


@pytest.mark.parametrize("name", ["small", "events_zero_bias"])
def test_arguments_are_read_off_a_state_dict(name):
    data = recording(name)
    arguments = published_arguments(data["state"])
    assert arguments == {
        "channels": (6, 8, 12, 16),
        "num_classes": data["eval"].shape[-1],
        "num_steps": 4,
        "kernel_size": 3,
        "encode": "repeat",
        "norm": "bn",
        "events": name.startswith("events"),
    }


def test_what_cannot_be_loaded_is_named():
    state = recording("small")["state"]
    arguments = published_arguments(state)
    net = TRevSNN(**arguments)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(TypeError, match="model must be a TRevSNN, got a Linear"):
        load_published(torch.nn.Linear(2, 2), state)
    for changed in ({"norm": "ws"}, {"encode": "group"}, {"eps_in": "sum"}):
        with pytest.raises(ValueError, match=f"layout, .*{next(iter(changed.values()))}"):
            load_published(TRevSNN(**{**arguments, **changed}), state)
    with pytest.raises(ValueError, match="with num_classes=5, but model has 7"):
        load_published(TRevSNN(**{**arguments, "num_classes": 7}), state)
    with pytest.raises(ValueError, match="'fc.weight', which is no name of the published"):
        load_published(net, {**state, "fc.weight": torch.zeros(1)})
    lacking = {name: v for name, v in state.items() if name != "cls_blocks.1.classifier.0.bias"}
    with pytest.raises(ValueError, match=r"lacks \['step_heads.1.classifier.bias'\]"):
        load_published(net, lacking)
    with pytest.raises(ValueError, match="nothing for 'cell.decays.0.2'"):
        published_arguments({n: v for n, v in state.items() if n != "subnet0.alpha2"})
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_published_first_weights():
    net = TRevSNN((16, 24, 32, 48), 5, 2, encode="repeat", norm="bn", init="published")
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all((m.bias == 0).all() for m in convolutions if m.bias is not None)
    weights = torch.cat([m.weight.detach().flatten() for m in convolutions])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.03)
    assert float(weights.mean()) == pytest.approx(0, abs=3e-4)
    assert all((gamma == 1).all() for n, gamma in net.named_parameters() if n.endswith("gamma"))


def test_momentum_of_two_updates_is_0_19():
    """The program moves running statistics twice a step, by 0.1 each time."""
    net = TRevSNN((4, 4, 6, 8), 5, 2, encode="repeat", norm="bn", momentum=0.19)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    twice = torch.nn.BatchNorm2d(norms[0].num_features)
    x = torch.randn(6, norms[0].num_features, 5, 5)
    twice(x), twice(x), norms[0](x)
    torch.testing.assert_close(norms[0].running_var, twice.running_var)
    torch.testing.assert_close(norms[0].running_mean, twice.running_mean)
    assert all(m.momentum == 0.19 for m in norms)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"init": "kaiming"}, ValueError, "init must be one of .* got 'kaiming'"),
        ({"eps_in": "std"}, ValueError, "eps_in must be one of .* got 'std'"),
        ({"window": "wide"}, ValueError, "window must be one of .* got 'wide'"),
        ({"momentum": 2.0}, ValueError, "momentum must be between 0 and 1, got 2.0"),
        ({"momentum": "0.1"}, TypeError, "momentum must be a number, got '0.1'"),
    ],
)
def test_bad_arguments_of_the_published_layout_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        TRevSNN((4, 4, 6, 8), 5, 2, **kwargs)
