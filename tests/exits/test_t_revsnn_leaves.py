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


@pytest.mark.parametrize(
    ("way", "form", "events"),
    [
        ("export", "trained", False),
        ("export", "folded", True),
        ("export", "composed", False),
        ("jit", "trained", True),
        ("jit", "folded", False),
        ("onnx", "trained", False),
        ("onnx", "composed", False),
    ],
)
def test_logits_outside_are_those_inside(way, form, events):
    net = FORMS[form](network(events))
    shape = (2, 2, 2, 16, 16) if events else (2, 3, 16, 16)
    prepared = torch.no_grad() if form == "trained" else torch.enable_grad()
    with prepared:
        outside = WAYS[way](copy.deepcopy(net), (torch.rand(shape),))
        x = torch.rand(shape)
        torch.testing.assert_close(outside(x), net(x), rtol=1e-4, atol=1e-5)
