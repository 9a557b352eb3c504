"""The loss modules compute what the functions do, with the arguments that they were given."""

import inspect
import math

import pytest
import torch

from sj_ext import functional, loss


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        (loss.SDTLoss, functional.sdt_cross_entropy, {}),
        (loss.TETLoss, functional.tet_cross_entropy, {}),
        (loss.TETLoss, functional.tet_cross_entropy, {"means": 0.3, "lamb": 0.2}),
        (loss.TETSLoss, functional.tet_s_cross_entropy, {}),
        (loss.TETSLoss, functional.tet_s_cross_entropy, {"label_smoothing": 0.3}),
        (loss.LTSLoss, functional.lts_cross_entropy, {}),
    ],
)
def test_module_is_the_function(module, function, arguments):
    y_seq = torch.randn(3, 5, 7)
    criterion = module(**arguments)
    for target in (torch.randint(7, (5,)), torch.rand(5, 7).softmax(-1)):
        assert torch.equal(criterion(y_seq, target), function(y_seq, target, **arguments))
    for name, value in arguments.items():
        assert f"{name}={value}" in repr(criterion)


def test_predictions():
    y_seq = torch.randn(3, 5, 7)
    for criterion in (loss.SDTLoss(), loss.TETLoss(), loss.TETSLoss()):
        torch.testing.assert_close(criterion.predict(y_seq), (y_seq[0] + y_seq[1] + y_seq[2]) / 3)
    assert torch.equal(loss.LTSLoss().predict(y_seq), y_seq[2])


@pytest.mark.parametrize("module", [loss.SDTLoss, loss.TETLoss, loss.TETSLoss, loss.LTSLoss])
def test_predictions_without_a_time_axis(module):
    with pytest.raises(ValueError, match="time axis"):
        module().predict(torch.randn(5, 7))


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_bad_arguments_raise_when_the_module_is_made(value):
    with pytest.raises(ValueError, match="lamb"):
        loss.TETLoss(lamb=value)
    with pytest.raises(ValueError, match="label_smoothing"):
        loss.TETSLoss(label_smoothing=value)
    with pytest.raises(ValueError, match="means"):
        loss.TETLoss(means=math.inf)
    with pytest.raises(TypeError, match="means"):
        loss.TETLoss(means="1")


OPTIONS = {
    "weight": torch.rand(7) + 0.1,
    "ignore_index": -100,
    "reduction": "none",
    "step_weights": [0.5, 0.0, 2.0],
}


@pytest.mark.parametrize(
    ("module", "function", "names"),
    [
        (loss.SDTLoss, functional.sdt_cross_entropy, list(OPTIONS)),
        (loss.TETLoss, functional.tet_cross_entropy, list(OPTIONS)),
        (loss.TETSLoss, functional.tet_s_cross_entropy, list(OPTIONS)),
        (loss.LTSLoss, functional.lts_cross_entropy, list(OPTIONS)[:-1]),
    ],
)
def test_options_are_handed_on(module, function, names):
    options = {name: OPTIONS[name] for name in names}
    criterion = module(**options)
    y_seq, target = torch.randn(3, 5, 7), torch.tensor([0, 6, -100, 2, 3])
    for lengths in (None, torch.tensor([1, 3, 2, 2, 1])):
        expected = function(y_seq, target, lengths=lengths, **options)
        assert torch.equal(criterion(y_seq, target, lengths=lengths), expected)
    assert "ignore_index=-100, reduction='none'" in repr(criterion)
    buffers = dict(criterion.named_buffers())
    assert set(buffers) == {"weight", "step_weights"} & set(names)
    assert all(buffer.dtype == torch.float64 for buffer in criterion.double().buffers())


@pytest.mark.parametrize("module", [loss.SDTLoss, loss.TETLoss, loss.TETSLoss, loss.LTSLoss])
def test_signatures_say_what_a_module_takes(module):
    parameters = inspect.signature(module).parameters
    assert {"weight", "ignore_index", "reduction"} <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert not list(module().state_dict())
    with pytest.raises(ValueError, match="reduction must be one of .*'none'.*, got 'avg'"):
        module(reduction="avg")
    with pytest.raises(TypeError, match="weight must be a tensor or a sequence, got 1.0"):
        module(weight=1.0)


def test_predictions_of_padded_batches():
    y_seq, lengths = torch.randn(3, 4, 7), torch.tensor([1, 3, 2, 3])
    mean = torch.stack([y_seq[:own, i].mean(0) for i, own in enumerate(lengths.tolist())])
    last = torch.stack([y_seq[own - 1, i] for i, own in enumerate(lengths.tolist())])
    for criterion in (loss.SDTLoss(), loss.TETLoss(), loss.TETSLoss()):
        torch.testing.assert_close(criterion.predict(y_seq, lengths=lengths), mean)
    assert torch.equal(loss.LTSLoss().predict(y_seq, lengths=lengths), last)
    weighted = loss.SDTLoss(step_weights=[0.0, 2.0, 1.0]).predict(y_seq)
    torch.testing.assert_close(weighted, 2 * y_seq[1] + y_seq[2])
