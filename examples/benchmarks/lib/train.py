"""One training loop for the tables: AdamW, a cosine rate, an optional pruner, AMP on a GPU."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmarks.lib.images import Images, augmented
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from sj_ext import parameter_groups
from sj_ext.analysis import SynapticOperations, per_step_accuracy, synaptic_operations

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How long and how a network is trained."""

    epochs: int
    lr: float = 2e-3
    batch: int = 64
    weight_decay: float = 1e-4
    augment: bool = False


def fit(
    net: nn.Module,
    data: Images,
    loss: Loss,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str = "cpu",
    make_pruner: Callable | None = None,
    after_epoch: Callable[[int], None] | None = None,
):
    """Train ``net``, which turns images ``[N, *]`` into logits ``[T, N, classes]``.

    Args:
        loss: of logits and labels; divergence raises a RuntimeError.
        seed: of the order of the images and of their augmentation, and of nothing else.
        make_pruner: ``(net, optimizer, number of steps) -> pruner``; steps once a batch.
        after_epoch: called with the number of epochs done, and with 0 before the first.

    Returns:
        The pruner, or None.
    """
    generator = torch.Generator().manual_seed(seed)
    net.to(device)
    materialize(net, data.x[:2].to(device))
    optimizer = torch.optim.AdamW(parameter_groups(net, recipe.weight_decay, recipe.lr))
    batches = max(1, len(data.y) // recipe.batch)
    steps = recipe.epochs * batches
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    )
    pruner = make_pruner(net, optimizer, steps) if make_pruner else None
    autocast = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=device.startswith("cuda")
    )
    if after_epoch:
        after_epoch(0)
    with tqdm(total=steps, unit="batch", leave=False, disable=None) as bar:
        for epoch in range(recipe.epochs):
            net.train()
            order = torch.randperm(len(data.y), generator=generator)[: batches * recipe.batch]
            for part in order.split(recipe.batch):
                x = augmented(data.x[part], generator) if recipe.augment else data.x[part]
                with autocast:
                    y_seq = net(x.to(device))
                value = loss(y_seq.float(), data.y[part].to(device))
                if not math.isfinite(value.item()):
                    raise RuntimeError(f"training diverged: loss {value.item()}")
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                rate.step()
                if pruner is not None:
                    pruner.step()
                bar.update()
                bar.set_postfix(loss=f"{value.item():.3f}")
            if after_epoch:
                after_epoch(epoch + 1)
    return pruner


@torch.no_grad()
def materialize(net: nn.Module, x: torch.Tensor) -> None:
    """Give lazy parameters their shapes, without touching running statistics."""
    net.eval()
    net(x)


def accuracy(net: nn.Module, data: Images, cumulative: bool = False) -> list[float]:
    """Accuracy at each time step, of the mean output so far with ``cumulative``."""
    return per_step_accuracy(net, data.batches(), cumulative=cumulative).tolist()


def mean_cross_entropy(y_seq: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the mean output, what SpikingJelly's examples train with."""
    return F.cross_entropy(y_seq.mean(0), y)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error (NaN for one value)."""
    error = math.nan
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), error


def percent(values: list[float], sign: str = "") -> str:
    """Mean and standard error over seeds, in percent; ``sign="+"`` shows the sign."""
    return in_units([100 * value for value in values], f"{sign}.1f")


def in_units(values: list[float], form: str) -> str:
    """Mean and standard error over seeds, with that format."""
    mean, error = mean_and_error(values)
    return f"{mean:{form}}" + ("" if math.isnan(error) else f" ± {error:{form.lstrip('+')}}")


def operations(net: nn.Module, x: torch.Tensor) -> SynapticOperations:
    """Synaptic operations on ``x``, in evaluation mode."""
    net.eval()
    return synaptic_operations(net, x)
