"""T-RevSNN leaves Python by each way, as trained, re-parameterised and composed."""

import copy

import pytest
import torch
from ways_out import WAYS

from sj_ext.model import TRevSNN, reparameterize

FORMS = {
    "trained": lambda net: net,
    "folded": reparameterize,
    "composed": lambda net: reparameterize(net, compose=True),
}


def network(events):
    net = TRevSNN((4, 4, 4, 4), 5, 2, encode="repeat", norm="bn", events=events)
    with torch.no_grad():  # statistics and scales that do something
        net.train()(torch.rand(2, 4, 2, 16, 16) if events else torch.rand(4, 3, 16, 16))
    return net.eval()


def inputs(events):
    return torch.rand(2, 2, 2, 16, 16) if events else torch.rand(2, 3, 16, 16)


def gradients_are_off_for(form):
    """Only the network as it was trained has to be told; the others are for inference."""
    return torch.no_grad() if form == "trained" else torch.enable_grad()


def assert_same_logits(outside, net, x):
    torch.testing.assert_close(outside(x).detach(), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["trained", "folded"])
def test_export_and_onnx_made_from_it(form):
    net = FORMS[form](network(events=False))
    with gradients_are_off_for(form):
        program = torch.export.export(copy.deepcopy(net), (inputs(False),))
        x = inputs(False)
        assert_same_logits(program.module(), net, x)
        assert_same_logits(WAYS["onnx"](program, None), net, x)


@pytest.mark.parametrize(
    ("form", "events"), [("trained", True), ("folded", False), ("composed", True)]
)
def test_traced_and_saved(form, events):
    net = FORMS[form](network(events))
    with gradients_are_off_for(form):
        outside = WAYS["jit"](copy.deepcopy(net), (inputs(events),))
        assert_same_logits(outside, net, inputs(events))
