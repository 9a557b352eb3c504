"""Averages of weights keep the exact budget."""

import copy

import pytest
import torch
from pruning.nets import mlp
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from sj_ext.pruning import MinimaxPruner, density, hand_over, make_permanent


def train(model, pruner, steps, update):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, target = torch.rand(16, 12), torch.randint(6, (16,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
        pruner.step()
        update()


def averages(kind, model):
    """The average, what updates it, and the network inside of it."""
    if kind == "timm":
        timm = pytest.importorskip("timm.utils")
        average = timm.ModelEmaV3(model, decay=0.9)
        return average, lambda: average.update(model), average.module
    fn = {"ema": get_ema_multi_avg_fn(0.9), "swa": get_swa_multi_avg_fn()}[kind[:3]]
    average = AveragedModel(model, multi_avg_fn=fn, use_buffers="buffers" in kind)
    return average, lambda: average.update_parameters(model), average.module


@pytest.mark.parametrize("late", [False, True], ids=["before the pruner", "after it"])
@pytest.mark.parametrize("kind", ["ema", "swa", "ema, buffers", "timm"])
def test_handed_over_zeros_stay(kind, late):
    model = mlp()
    if late:
        pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=16)
        average, update, inner = averages(kind, model)
    else:
        average, update, inner = averages(kind, model)
        pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=16)
    train(model, pruner, 20, update)
    assert pruner.finished
    assert sum(int((p != 0).sum()) for p in inner.parameters() if p.dim() > 1) > pruner.kept
    assert hand_over(model, average) is average
    assert density(inner) == pruner.density <= 0.3
    train(model, pruner, 3, update)
    kept = sum(int((p != 0).sum()) for p in inner.parameters() if p.dim() > 1)
    assert kept == pruner.kept
    if late:
        make_permanent(inner)
        assert density(inner) == pruner.density


def test_an_average_made_beside_the_pruner_is_exact_once_permanent():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=16)
    _, update, inner = averages("ema", model)
    train(model, pruner, 20, update)
    make_permanent(inner)
    assert density(inner) == pruner.density


def test_lightnings_averaging():
    lightning = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.callbacks import Callback, WeightAveraging

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    class Prune(Callback):
        def on_train_batch_end(self, *_):
            pruner.step()

    class Average(WeightAveraging):
        def on_train_end(self, trainer, module):
            hand_over(module, self._average_model)
            super().on_train_end(trainer, module)

    model = Module()
    pruner = MinimaxPruner(model, budget=0.3, first=True, schedule=16)
    data = torch.utils.data.TensorDataset(torch.rand(160, 12), torch.randint(6, (160,)))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Prune(), Average()],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16))
    assert pruner.finished and pruner.steps_done == 16
    # Lightning put the average into the model
    assert sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1) == pruner.kept


def test_what_is_no_copy_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match="no masked layer"):
        hand_over(model, copy.deepcopy(model))
    MinimaxPruner(model, budget=0.3, first=True)
    with pytest.raises(ValueError, match=r"no parameter '0\.weight'"):
        hand_over(model, nn.Linear(3, 3))
