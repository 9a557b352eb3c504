"""per_step_accuracy against counting by hand."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sj_ext import host
from sj_ext.analysis import per_step_accuracy, plot_per_step_accuracy
from sj_ext.functional import tet_cross_entropy
from sj_ext.model import TRevSNN


def by_hand(y_seq, target, cumulative):
    accuracy = []
    for t in range(len(y_seq)):
        answer = y_seq[: t + 1].double().mean(0) if cumulative else y_seq[t]
        right = [int(answer[i].argmax()) == int(target[i]) for i in range(len(target))]
        accuracy.append(sum(right) / len(right))
    return accuracy


@pytest.mark.parametrize("cumulative", [False, True])
def test_outputs(cumulative):
    y_seq, target = torch.randn(5, 40, 4), torch.randint(4, (40,))
    accuracy = per_step_accuracy(y_seq, target, cumulative=cumulative)
    assert accuracy.dtype == torch.float64
    assert accuracy.tolist() == by_hand(y_seq, target, cumulative)


def spiking_net():
    return nn.Sequential(
        host.layer.Linear(6, 12, step_mode="m"),
        host.neuron.LIFNode(step_mode="m"),
        host.layer.Dropout(step_mode="m"),
        host.layer.Linear(12, 3, step_mode="m"),
    )


@pytest.mark.parametrize("cumulative", [False, True])
def test_model_over_batches_of_different_size(cumulative):
    net = spiking_net()
    x, target = 4 * torch.rand(23, 6), torch.randint(3, (23,))
    batches = DataLoader(TensorDataset(x, target), batch_size=5)
    accuracy = per_step_accuracy(net, batches, num_steps=4, cumulative=cumulative)

    net.eval()
    with torch.no_grad():
        y_seq = net(x.repeat(4, 1, 1))
    assert accuracy.tolist() == pytest.approx(by_hand(y_seq, target, cumulative), abs=1e-12)


def test_inputs_that_have_their_time_axis():
    net = spiking_net()
    x_seq, target = 4 * torch.rand(3, 7, 6), torch.randint(3, (7,))
    accuracy = per_step_accuracy(net, [(x_seq, target)])
    net.eval()
    with torch.no_grad():
        assert accuracy.tolist() == by_hand(net(x_seq), target, False)


def test_flags_and_gradients_of_the_model_are_left_alone():
    net = spiking_net()
    net[2].eval()
    flags = [module.training for module in net.modules()]
    per_step_accuracy(net, [(torch.rand(5, 6), torch.randint(3, (5,)))], num_steps=2)
    assert [module.training for module in net.modules()] == flags
    assert torch.is_grad_enabled()
    # the state of the last batch is gone: another batch size runs
    assert net(torch.rand(2, 9, 6)).requires_grad


def test_flags_are_restored_after_an_error():
    net = spiking_net().train()
    with pytest.raises(ValueError, match="targets must hold class indices"):
        per_step_accuracy(net, [(torch.rand(5, 6), torch.randint(3, (4,)))], num_steps=2)
    assert all(module.training for module in net.modules())


def test_bad_input():
    y_seq, target = torch.randn(5, 4, 3), torch.randint(3, (4,))
    with pytest.raises(ValueError, match="time axis"):
        per_step_accuracy(y_seq[0], target)
    with pytest.raises(ValueError, match=r"targets .*\[N\], here \[4\], got \[4, 3\]"):
        per_step_accuracy(y_seq, torch.rand(4, 3))
    with pytest.raises(TypeError, match="integer dtype, got torch.float32"):
        per_step_accuracy(y_seq, target.float())
    with pytest.raises(TypeError, match="targets must be a tensor"):
        per_step_accuracy(y_seq, target.tolist())
    with pytest.raises(TypeError, match="outputs .* or a model, got list"):
        per_step_accuracy([1], target)
    with pytest.raises(TypeError, match="num_steps goes with a model"):
        per_step_accuracy(y_seq, target, num_steps=4)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        per_step_accuracy(spiking_net(), [], num_steps=0)
    with pytest.raises(ValueError, match="batches is empty"):
        per_step_accuracy(spiking_net(), [])
    batches = [(torch.rand(t, 4, 6), target) for t in (3, 2)]
    with pytest.raises(ValueError, match="same number of time steps, got 2 after 3"):
        per_step_accuracy(spiking_net(), batches)


def test_plot_shows_the_numbers():
    accuracy = torch.tensor([0.25, 0.5, 1.0])
    axes = plot_per_step_accuracy({"first": accuracy, "second": accuracy / 2})
    assert [list(line.get_ydata()) for line in axes.lines] == [[25, 50, 100], [12.5, 25, 50]]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first", "second"]
    assert len(plot_per_step_accuracy(accuracy).lines) == 1
    with pytest.raises(ValueError, match="accuracies is empty"):
        plot_per_step_accuracy({})


@pytest.mark.parametrize("wrap", [lambda net: net, torch.optim.swa_utils.AveragedModel])
@pytest.mark.parametrize("events", [False, True])
def test_a_model_that_answers_with_the_last_step_in_evaluation(wrap, events):
    net = TRevSNN((4, 4, 4, 4), 3, 2, events=events, norm="bn")
    x = torch.rand(2, 5, 2, 16, 16) if events else torch.rand(5, 3, 16, 16)
    target = torch.randint(3, (5,))
    accuracy = per_step_accuracy(wrap(net), [(x, target)])
    assert net.training
    with torch.no_grad():
        expected = net.eval().step_logits(x)
    assert len(accuracy) == (1 if events else 2)
    assert accuracy.tolist() == by_hand(expected, target, False)
    assert torch.isfinite(tet_cross_entropy(expected, target))
    with pytest.raises(ValueError, match="step_logits"):
        tet_cross_entropy(net(x), target)
    with pytest.raises(ValueError, match="step_logits"):
        per_step_accuracy(net(x), target)


def test_dense_outputs():
    y_seq, target = torch.randn(3, 4, 5, 6, 7), torch.randint(5, (4, 6, 7))
    accuracy = per_step_accuracy(y_seq, target)
    flat = y_seq.permute(0, 1, 3, 4, 2).flatten(1, 3)
    assert accuracy.tolist() == by_hand(flat, target.flatten(), False)
