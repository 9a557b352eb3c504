"""The loss modules compute what the functions do, with the arguments that they were given."""

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
