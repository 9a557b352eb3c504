"""What people need of a loss, against PyTorch's ``cross_entropy`` of each step, in float64.

Class weights, an index that does not count, reductions, dense targets, step weights, lengths of
padded samples and targets for each step, in all combinations that make sense.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sj_ext.analysis import activation_memory
from sj_ext.functional import (
    lts_cross_entropy,
    sdt_cross_entropy,
    tet_cross_entropy,
    tet_s_cross_entropy,
)

LOSSES = {
    "sdt": (sdt_cross_entropy, {}),
    "tet": (tet_cross_entropy, {}),
    "tet, mse": (tet_cross_entropy, {"means": 0.7, "lamb": 0.25}),
    "tet_s": (tet_s_cross_entropy, {"label_smoothing": 0.2}),
    "lts": (lts_cross_entropy, {}),
}
IGNORED = -100


# ---- the oracle: one cross_entropy per sample and step, no option of ours in it ------------------


def mean_or_sum(entries, weights, reduction):
    """PyTorch's three reductions of entries ``[N, *]`` that count ``weights``."""
    if reduction == "none":
        return entries
    return entries.sum() / (1 if reduction == "sum" else weights.sum())


def target_at(target, per_step, t):
    return target[t] if per_step else target


def entry(y, q, weight=None, smoothing=0.0):
    """The losses ``[*]`` of one sample at one step, and what they count; ``y`` is ``[C, *]``."""
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": "none"}
    loss = F.cross_entropy(y[None], q[None], ignore_index=IGNORED, **options)[0]
    if q.is_floating_point():
        return loss, torch.ones_like(loss)
    counts = torch.ones(y.shape[0], dtype=y.dtype) if weight is None else weight
    return loss, torch.where(q == IGNORED, 0.0, counts[q.clamp_min(0)])


def oracle(name, y_seq, target, options):
    y_seq = y_seq.double()
    steps, n = y_seq.shape[:2]
    lengths = options.get("lengths", torch.full((n,), steps))
    weight = options.get("weight")
    shares = options.get("step_weights", torch.full((steps,), 1 / steps, dtype=torch.float64))
    reduction = options.get("reduction", "mean")
    per_step = target.dim() == y_seq.dim() - (0 if target.is_floating_point() else 1)
    losses, weights, squares, kept = [], [], [], []
    for i in range(n):
        own = int(lengths[i])
        share = shares[:own] / shares[:own].sum() * shares.sum()
        y = y_seq[:own, i]
        q = [target_at(target, per_step, t)[i] for t in range(own)]
        if name == "sdt":
            parts = [entry(sum(share[t] * y[t] for t in range(own)), q[0], weight)]
            share = torch.ones(1, dtype=torch.float64)
        elif name == "lts":
            parts = [entry(y[-1], q[-1], weight)]
            share = torch.ones(1, dtype=torch.float64)
        else:
            smoothing = 0.2 if name == "tet_s" else 0.0
            parts = [entry(y[t], q[t], weight, smoothing) for t in range(own)]
        losses.append(sum(s * loss for s, (loss, _) in zip(share, parts, strict=True)))
        counts = sum(s * count for s, (_, count) in zip(share, parts, strict=True))
        weights.append(counts / share.sum())
        counted = [entry(y[t], q[t])[1] for t in range(own)]
        distance = [((y[t] - 0.7) ** 2).mean(0) for t in range(own)]
        squares.append(sum(c * d for c, d in zip(counted, distance, strict=True)) / own)
        kept.append(sum(counted) / own)
    losses, weights = torch.stack(losses), torch.stack(weights)
    loss = mean_or_sum(losses, weights, reduction)
    if name == "tet, mse":
        loss = 0.75 * loss + 0.25 * mean_or_sum(torch.stack(squares), torch.stack(kept), reduction)
    return loss


def problem(sizes, rest, kind, ignored, dtype=torch.float64):
    """Logits ``[T, N, C, *]`` and a target of a kind, some entries of it ignored."""
    t, n, c = sizes
    y_seq = (2 * torch.randn(t, n, c, *rest, dtype=dtype)).requires_grad_()
    shape = (t, n) if "step" in kind else (n,)
    if "probabilities" in kind:
        return y_seq, torch.rand(*shape, c, *rest, dtype=dtype).softmax(len(shape))
    target = torch.randint(c, (*shape, *rest))
    if ignored:
        dropped = torch.rand(target.shape) < 0.3
        dropped.view(-1)[0] = False  # something counts
        target[dropped] = IGNORED
    return y_seq, target


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    rest=st.sampled_from([(), (3,), (2, 3)]),
    kind=st.sampled_from(["indices", "probabilities", "step indices", "step probabilities"]),
    weighted=st.booleans(),
    ignored=st.booleans(),
    step_weighted=st.booleans(),
    padded=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_value_and_gradient_are_those_of_single_cross_entropies(
    name, sizes, rest, kind, weighted, ignored, step_weighted, padded, reduction
):
    function, own = LOSSES[name]
    if name == "sdt":
        kind = kind.removeprefix("step ")
    y_seq, target = problem(sizes, rest, kind, ignored)
    options = {"reduction": reduction}
    if weighted:
        options["weight"] = torch.rand(sizes[2], dtype=torch.float64) + 0.1
    if ignored and "probabilities" not in kind:
        options["ignore_index"] = IGNORED
    if step_weighted and name != "lts":
        options["step_weights"] = torch.rand(sizes[0], dtype=torch.float64) + 0.1
    if padded:
        options["lengths"] = torch.randint(1, sizes[0] + 1, (sizes[1],))
    dropped = ignored and kind == "step indices"
    if name == "lts" and dropped:  # of the steps only the last ones count
        target[0] = torch.where(target[0] == IGNORED, 0, target[0])
        options.setdefault("lengths", torch.full((sizes[1],), sizes[0]))[0] = 1
    if "tet" in name and dropped and padded:
        target[0, 0] = 0  # inside, whatever the lengths are
    loss = function(y_seq, target, **own, **options)
    expected = oracle(name, y_seq, target, options)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    grads = [torch.autograd.grad(value.sum(), y_seq)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_all_steps_alike_are_the_flat_cross_entropy_of_pytorch():
    """With a target for each step, PyTorch's own on all steps at once, divisor included."""
    y_seq, target = problem((5, 6, 7), (), "step indices", True)
    options = {"weight": torch.rand(7, dtype=torch.float64) + 0.1, "ignore_index": IGNORED}
    for function, smoothing in ((tet_cross_entropy, {}), LOSSES["tet_s"]):
        expected = F.cross_entropy(y_seq.flatten(0, 1), target.flatten(), **options, **smoothing)
        torch.testing.assert_close(function(y_seq, target, **options, **smoothing), expected)


def test_the_divisor_is_that_of_the_steps_that_weigh():
    y_seq, target = problem((3, 4, 5), (), "step indices", False)
    target[:2] = IGNORED
    target[2, 1] = IGNORED
    expected = 2 * F.cross_entropy(y_seq[2], target[2])
    options = {"step_weights": [0.0, 0.0, 2.0], "ignore_index": IGNORED}
    torch.testing.assert_close(tet_cross_entropy(y_seq, target, **options), expected)
    weight = torch.rand(5, dtype=torch.float64) + 0.1
    expected = 2 * F.cross_entropy(y_seq[2], target[2], weight)
    torch.testing.assert_close(tet_cross_entropy(y_seq, target, weight=weight, **options), expected)


def test_the_weights_of_t_revsnn():
    """Heads after steps 1 to T - 1 count t / T, the last one 1."""
    y_seq, target = problem((4, 6, 7), (), "indices", False)
    weights = [0.25, 0.5, 0.75, 1.0]
    expected = sum(w * F.cross_entropy(y, target) for w, y in zip(weights, y_seq, strict=True))
    torch.testing.assert_close(tet_cross_entropy(y_seq, target, step_weights=weights), expected)


def test_learned_step_weights_get_their_gradient():
    y_seq, target = problem((4, 6, 7), (), "indices", False)
    weights = torch.rand(4, dtype=torch.float64).requires_grad_()
    lengths = torch.tensor([4, 1, 2, 3, 4, 2])
    for options in ({}, {"lengths": lengths}):
        torch.autograd.gradcheck(
            lambda w, options=options: tet_cross_entropy(y_seq, target, step_weights=w, **options),
            (weights,),
        )


# ---- promises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("padding", [0.0, 1e30, math.inf, math.nan])
def test_what_lies_beyond_a_length_does_not_matter(name, padding):
    function, own = LOSSES[name]
    y_seq, target = problem((4, 3, 5), (), "indices", False)
    lengths = torch.tensor([2, 4, 1])
    expected = function(y_seq, target, lengths=lengths, **own)
    outside = torch.arange(4)[:, None] >= lengths
    padded = y_seq.detach().clone()
    padded[outside] = padding
    padded.requires_grad_()
    loss = function(padded, target, lengths=[2, 4, 1], **own)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (padded.grad[outside] == 0).all()
    assert (padded.grad[lengths - 1, torch.arange(3)] != 0).any(-1).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_padded_batch_is_the_mean_of_its_samples(name):
    function, own = LOSSES[name]
    y_seq, target = problem((4, 3, 5), (), "indices", False)
    lengths = [2, 4, 1]
    alone = [
        function(y_seq[:own_length, i : i + 1], target[i : i + 1], **own)
        for i, own_length in enumerate(lengths)
    ]
    together = function(y_seq, target, lengths=lengths, **own)
    torch.testing.assert_close(together, sum(alone) / 3)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_ignored_gets_no_gradient(name):
    function, own = LOSSES[name]
    y_seq, target = problem((3, 4, 5), (2,), "indices", False)
    target[1, 0] = 255
    function(y_seq, target, ignore_index=255, **own).backward()
    assert (y_seq.grad[:, 1, :, 0] == 0).all()
    assert (y_seq.grad[-1, 1, :, 1] != 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_all_ignored_is_nan_in_the_mean_and_zero_in_the_sum_as_in_pytorch(name):
    function, own = LOSSES[name]
    y_seq, target = problem((3, 4, 5), (), "indices", False)
    target[:] = IGNORED
    assert function(y_seq, target, ignore_index=IGNORED, **own).isnan()
    assert function(y_seq, target, ignore_index=IGNORED, reduction="sum", **own) == 0


# ---- transforms ----------------------------------------------------------------------------------

CASES = {
    "plain": {},
    "weights": {"weight": torch.rand(5) + 0.1, "step_weights": [0.1, 0.2, 0.7]},
    "lengths": {"lengths": torch.tensor([3, 1, 2, 2])},
    "ignored": {"ignore_index": IGNORED},
}


def in_case(name, case):
    options = dict(CASES[case])
    if name == "lts":
        options.pop("step_weights", None)
    return LOSSES[name][0], {**LOSSES[name][1], **options}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_torch_func_grad_and_vmap(name, case):
    function, options = in_case(name, case)
    batches = [problem((3, 4, 5), (), "indices", case == "ignored") for _ in range(3)]
    ys = torch.stack([y.detach() for y, _ in batches]).float()
    targets = torch.stack([target for _, target in batches])

    def loss(y, target):
        return function(y, target, **options)

    values = torch.func.vmap(loss)(ys, targets)
    grads = torch.func.vmap(torch.func.grad(loss))(ys, targets)
    for i in range(3):
        y = ys[i].clone().requires_grad_()
        value = loss(y, targets[i])
        torch.testing.assert_close(values[i], value)
        torch.testing.assert_close(grads[i], torch.autograd.grad(value, y)[0])
        torch.testing.assert_close(torch.func.grad(loss)(ys[i], targets[i]), grads[i])
    with pytest.raises(ValueError, match="target must hold"):
        torch.func.vmap(loss)(ys, targets + 5)


@pytest.mark.parametrize("name", LOSSES)
def test_per_sample_gradients(name):
    """vmap over the samples of one batch, as torch.func's per-sample gradients have it."""
    function, own = LOSSES[name]
    y_seq, target = problem((3, 4, 5), (), "indices", False)

    def loss(y, q):
        return function(y[:, None], q[None], **own)

    grads = torch.func.vmap(torch.func.grad(loss), (1, 0), 1)(y_seq.detach(), target)
    (expected,) = torch.autograd.grad(function(y_seq, target, reduction="sum", **own), y_seq)
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_second_derivatives(name, case):
    function, options = in_case(name, case)
    y_seq, target = problem((3, 4, 5), (), "indices", case == "ignored")
    torch.autograd.gradgradcheck(lambda y: function(y, target, **options), (y_seq,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_autocast_rounds_nothing_but_the_logits(name, case):
    function, options = in_case(name, case)
    y_seq, target = problem((3, 4, 5), (), "indices", case == "ignored", torch.float32)
    expected = function(y_seq, target, **options)
    with torch.autocast("cpu", torch.bfloat16):
        loss = function(y_seq, target, **options)
        low = function(y_seq.bfloat16(), target, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(low.float(), expected, rtol=2e-2, atol=0)


@pytest.mark.parametrize("name", ["sdt", "tet, mse", "lts"])
def test_compiles_without_a_graph_break(name):
    function, options = in_case(name, "weights")
    options |= CASES["lengths"] | CASES["ignored"]
    y_seq, target = problem((3, 4, 5), (), "indices", True, torch.float32)
    compiled = torch.compile(
        lambda y, q: function(y, q, **options), fullgraph=True, backend="aot_eager"
    )
    loss, expected = compiled(y_seq, target), function(y_seq, target, **options)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value, y_seq)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)


# ---- memory --------------------------------------------------------------------------------------

MANY = {
    "weight": {"weight": torch.rand(1000)},
    "ignore_index": {"ignore_index": IGNORED},
    "step_weights": {"step_weights": torch.rand(16)},
    "reduction": {"reduction": "sum"},
}


@pytest.mark.parametrize("name", ["tet", "tet, mse", "tet_s"])
@pytest.mark.parametrize("case", MANY)
@pytest.mark.parametrize("per_step", [False, True])
def test_options_cost_no_memory(name, case, per_step):
    if name == "tet_s" and case == "weight" and per_step:
        pytest.skip("weighted log-probabilities of every step are summed by way of a product")
    function, own = LOSSES[name]
    kind = "step indices" if per_step else "indices"
    y_seq, target = problem((16, 16, 1000), (), kind, case == "ignore_index", torch.float32)
    flat = target.flatten() if per_step else target.repeat(16)
    ours = activation_memory(lambda: function(y_seq, target, **own, **MANY[case]))[1]
    peer = activation_memory(lambda: F.cross_entropy(y_seq.flatten(0, 1), flat))[1]
    assert ours.saved <= 1.2 * peer.saved
    assert ours.peak <= 1.2 * peer.peak


def test_dense_logits_cost_no_memory():
    y_seq, target = problem((8, 4, 20), (24, 24), "indices", False, torch.float32)
    ours = activation_memory(lambda: tet_cross_entropy(y_seq, target))[1]
    repeated = target.repeat(8, 1, 1)
    peer = activation_memory(lambda: F.cross_entropy(y_seq.flatten(0, 1), repeated))[1]
    assert ours.saved <= 1.2 * peer.saved and ours.peak <= 1.2 * peer.peak


def test_lengths_cost_one_copy_of_the_logits_for_the_time_of_the_call():
    y_seq, target = problem((16, 16, 1000), (), "indices", False, torch.float32)
    lengths = torch.randint(1, 17, (16,))
    plain = activation_memory(lambda: tet_cross_entropy(y_seq, target))[1]
    ours = activation_memory(lambda: tet_cross_entropy(y_seq, target, lengths=lengths))[1]
    assert ours.saved <= 1.1 * plain.saved
    assert ours.peak <= plain.peak + 1.1 * 4 * y_seq.numel()


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "weight must be a tensor.*list", {"weight": [1.0] * 5}),
        (TypeError, "weight must be of a floating", {"weight": torch.ones(5).long()}),
        (ValueError, r"weight must have one entry per class, \[5\], got \[4\]", {
            "weight": torch.ones(4)}),
        (TypeError, "ignore_index must be an integer, got 0.0", {"ignore_index": 0.0}),
        (TypeError, "ignore_index must be an integer, got True", {"ignore_index": True}),
        (TypeError, "reduction must be one of .*'mean'.*, got 1", {"reduction": 1}),
        (ValueError, "reduction must be one of .*'sum'.*, got 'max'", {"reduction": "max"}),
        (TypeError, "lengths must be of an integer dtype", {"lengths": torch.ones(4)}),
        (TypeError, "lengths must be a tensor or a sequence of numbers, got 3", {"lengths": 3}),
        (TypeError, "lengths\\[0\\] must be a number, got 'a'", {"lengths": ["a"] * 4}),
        (ValueError, r"lengths must have one entry per sample, \[4\], got \[3\]", {
            "lengths": [1, 2, 3]}),
        (ValueError, "lengths must hold numbers of steps from 1 to 3, got 0 for sample 2", {
            "lengths": [1, 2, 0, 3]}),
        (ValueError, "lengths must hold numbers of steps from 1 to 3, got 4 for sample 1", {
            "lengths": torch.tensor([1, 4, 3, 3])}),
    ],
)  # fmt: skip
def test_wrong_options(error, message, options):
    y_seq, target = problem((3, 4, 5), (), "indices", False)
    for function, own in LOSSES.values():
        with pytest.raises(error, match=message):
            function(y_seq, target, **own, **options)


@pytest.mark.parametrize(
    ("error", "message", "value"),
    [
        (TypeError, "step_weights must be a tensor or a sequence of numbers, got 0.5", 0.5),
        (TypeError, "step_weights\\[0\\] must be a number, got '1'", ["1", 1, 1]),
        (TypeError, "step_weights must be real numbers", torch.ones(3, dtype=torch.complex64)),
        (ValueError, r"step_weights must have one entry per step, \[3\], got \[2\]", [1.0, 2.0]),
        (ValueError, "step_weights must hold finite numbers of 0 or more.*got -1", [1, -1, 1]),
        (
            ValueError,
            "step_weights\\[1\\] must be a finite number, got nan",
            [1, math.nan, 1],
        ),
        (ValueError, "step_weights must hold .* with one above 0, got 0", [0, 0, 0]),
    ],
)
def test_wrong_step_weights(error, message, value):
    y_seq, target = problem((3, 4, 5), (), "indices", False)
    for name, (function, own) in LOSSES.items():
        if name != "lts":
            with pytest.raises(error, match=message):
                function(y_seq, target, step_weights=value, **own)


def test_a_sample_without_a_weight_in_its_steps():
    y_seq, target = problem((3, 4, 5), (), "indices", False)
    with pytest.raises(ValueError, match="step_weights must hold a weight above 0.*for sample 1"):
        tet_cross_entropy(y_seq, target, step_weights=[0, 0, 1], lengths=[3, 2, 3, 3])


def test_targets_that_do_not_go_with_a_loss_or_an_option():
    y_seq, target = problem((3, 4, 5), (), "step indices", False)
    with pytest.raises(ValueError, match="target must not have a time axis.*tet_cross_entropy"):
        sdt_cross_entropy(y_seq, target)
    y_seq, target = problem((3, 4, 5), (), "probabilities", False)
    with pytest.raises(ValueError, match="ignore_index goes with class indices"):
        tet_cross_entropy(y_seq, target, ignore_index=0)
    y_seq, target = problem((3, 4, 5), (), "step indices", False)
    target[2, 1] = 7
    with pytest.raises(ValueError, match="got 7 for sample 1 at step 2"):
        tet_cross_entropy(y_seq, target)


def test_steps_samples_and_classes_of_one_number_are_told_apart_by_the_dtype():
    y_seq, target = problem((3, 3, 3), (), "step indices", False)
    torch.testing.assert_close(
        tet_cross_entropy(y_seq, target), F.cross_entropy(y_seq.flatten(0, 1), target.flatten())
    )
    y_seq, target = problem((3, 3, 3), (), "probabilities", False)
    torch.testing.assert_close(
        tet_cross_entropy(y_seq, target), sum(F.cross_entropy(y, target) for y in y_seq) / 3
    )
    with pytest.raises(TypeError, match="integer dtype"):
        tet_cross_entropy(y_seq, target.to(torch.complex64))
