"""A run that is stopped at any step goes on to the same end, to the bit."""

import copy
import io

import pytest
import torch
from pruning.nets import mlp, spiking_mlp
from torch import nn

from sj_ext import host
from sj_ext.pruning import IterativeMagnitudePruner, MinimaxPruner
from sj_ext.pruning.masks import masked_layers

STEPS, MICRO = 40, 2


def build(case):
    torch.manual_seed(7)
    model = spiking_mlp() if case["spiking"] else mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = case["cls"](
        model,
        budget=case["budget"],
        first=True,
        schedule=STEPS,
        log_every=3,
        optimizer=optimizer if case["hook"] else None,
        **case["options"],
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=5)
    return {"model": model, "optimizer": optimizer, "pruner": pruner, "scaler": scaler}


def go_on(parts, start, stop):
    """Micro-batches ``start`` to ``stop``, with AMP, skipped steps and accumulation."""
    model, scaler = parts["model"], parts["scaler"]
    for i in range(start, stop):
        generator = torch.Generator().manual_seed(i)
        x = torch.rand(3, 8, 12, generator=generator)
        target = torch.randint(6, (8,), generator=generator)
        host.functional.reset_net(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).mean(0).float(), target)
        scaler.scale(loss).backward()
        if i % 14 == 7:
            next(model.parameters()).grad.fill_(float("inf"))
        if i % MICRO == MICRO - 1:
            scaler.step(parts["optimizer"])
            scaler.update()
            parts["optimizer"].zero_grad()
        parts["pruner"].step()
        if i % 9 == 0:
            parts["pruner"].score(float(i % 5))


def everything(parts):
    state = parts["pruner"].state_dict()
    state.pop("history")
    masks = [mask.mask for _, _, mask in masked_layers(parts["model"])]
    return state, list(parts["model"].parameters()), masks


CASES = {
    "global": {"cls": MinimaxPruner, "budget": 0.1, "options": {}},
    "layerwise": {"cls": MinimaxPruner, "budget": 0.1, "options": {"layerwise": True}},
    "synops, by hook": {
        "cls": MinimaxPruner,
        "budget": {"synops": 0.3, "params": 0.4},
        "options": {},
        "spiking": True,
        "hook": True,
    },
    "channels": {"cls": MinimaxPruner, "budget": 0.3, "options": {"granularity": "channel"}},
    "magnitude": {"cls": IterativeMagnitudePruner, "budget": 0.1, "options": {}},
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_equals_the_one_that_was_not_stopped(name):
    case = {"spiking": False, "hook": False, **CASES[name]}
    end = STEPS * MICRO + 24
    whole = build(case)
    stop = int(
        torch.randint(
            1,
            end - 1,
            (),
            generator=torch.Generator().manual_seed(int(torch.initial_seed() % 2**31)),
        )
    )
    stop -= stop % MICRO  # gradients in flight are no part of a checkpoint
    go_on(whole, 0, end)
    assert whole["pruner"].finished

    first = build(case)
    go_on(first, 0, stop)
    file = io.BytesIO()
    torch.save({key: part.state_dict() for key, part in first.items()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = build(case)
    go_on(second, 0, 5)  # whatever it did before is overwritten
    second["optimizer"].zero_grad()
    for key in second:
        second[key].load_state_dict(saved[key])
    go_on(second, stop, end)

    (a, weights_a, masks_a), (b, weights_b, masks_b) = everything(whole), everything(second)
    assert str(a) == str(b), f"stopped before micro-batch {stop}"
    assert all(torch.equal(x, y) for x, y in zip(weights_a, weights_b, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(masks_a, masks_b, strict=True))
    assert whole["pruner"].history.rows == second["pruner"].history.rows


def test_the_state_is_a_copy():
    parts = build({"cls": MinimaxPruner, "budget": 0.1, "options": {}, "spiking": 0, "hook": 0})
    go_on(parts, 0, 20)
    state = parts["pruner"].state_dict()
    kept = copy.deepcopy(state)
    go_on(parts, 20, 40)
    assert str(state) == str(kept)
