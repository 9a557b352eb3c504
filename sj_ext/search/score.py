r"""What a network is worth before any training.

Samples that a network at initialisation cannot tell apart, it will hardly learn to tell apart. With
the spikes :math:`c_i` that a layer fires on sample i in one step, n neurons, and the Hamming
distance :math:`d_{ij}`, the kernel of SNASNet (sparsity-aware Hamming distance) is

.. math::
    K_{ij} = \sum_{\text{layers, steps}} n - \alpha \frac{d_{ij}}{e_{ij} + \epsilon}, \qquad
    e_{ij} = n (p_i (1 - p_j) + (1 - p_i) p_j),

with :math:`e_{ij}` the distance that rates :math:`p_i, p_j` alone would give. Plain Hamming is
:math:`K_{ij} = \sum n - d_{ij}`. The score is :math:`\log |\det K|`, computed in float64: in
float32 the large n hides what differs.

Source: Kim et al., "Neural Architecture Search for Spiking Neural Networks", ECCV 2022 (arXiv
2201.10355); Mellor et al., "Neural Architecture Search without Training", ICML 2021 (arXiv
2006.04647).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from ..observe import watching
from .network.autost import operations
from .space.autost import Candidate

__all__ = ["autost_score", "hamming", "pattern_kernel", "spike_patterns"]

EPSILON = 1e-3


@checked
def spike_patterns(
    model: nn.Module,
    batch: torch.Tensor,
    *,
    alpha: float = 0.5,
    reduce: str = "mean",
    reset: bool = True,
) -> float:
    """SNASNet's score, higher is better: how well spikes tell the samples of a batch apart.

    The network runs in training mode, as batch statistics are all that it has, but without dropout;
    its running statistics, modes and (with ``reset``) potentials are as before afterwards.

    Args:
        model: at initialisation.
        batch: as the network takes it, ``[N, *]``.
        alpha: weight of the distances, against n.
        reduce: ``'mean'`` of the kernel over layers and steps, or ``'sum'``.
        reset: whether neurons start from rest. The public program leaves what the batch before
            left.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``reduce`` is unknown, or nothing in the network fires.
    """
    kernel = pattern_kernel(model, batch, alpha=alpha, reduce=reduce, reset=reset)
    return float(torch.linalg.slogdet(kernel)[1])


@checked
def hamming(
    model: nn.Module, batch: torch.Tensor, *, reduce: str = "sum", reset: bool = True
) -> float:
    """The score from plain Hamming distances, higher is better.

    Args:
        model: at initialisation.
        batch: as the network takes it, ``[N, *]``.
        reduce: as :func:`spike_patterns`.
        reset: as :func:`spike_patterns`.

    Raises:
        TypeError, ValueError: as :func:`spike_patterns`.
    """
    kernel = pattern_kernel(model, batch, alpha=None, reduce=reduce, reset=reset)
    return float(torch.linalg.slogdet(kernel)[1])


@checked
def autost_score(candidate: Candidate, **setting: Any) -> float:
    """AutoST's score: operations of an image in units of 10^9, by formula, with no model built.

    Args:
        candidate: the architecture in the paper's words, see
            :func:`sj_ext.search.space.autost.candidate`.
        **setting: the arguments of :func:`operations`.

    Raises:
        ValueError: as :func:`sj_ext.search.network.autost.operations`.

    Source: Wang et al., "AutoST", ICASSP 2024 (arXiv 2307.00293).
    """
    return operations(candidate, **setting) / 1e9


@checked
def pattern_kernel(
    model: nn.Module,
    batch: torch.Tensor,
    *,
    alpha: float | None = 0.5,
    reduce: str = "mean",
    reset: bool = True,
) -> torch.Tensor:
    """The kernel between samples, ``[N, N]`` in float64; with ``alpha=None`` the plain one.

    Args:
        model: as :func:`spike_patterns`.
        batch: as :func:`spike_patterns`.
        alpha: as :func:`spike_patterns`.
        reduce: as :func:`spike_patterns`.
        reset: as :func:`spike_patterns`.

    Raises:
        TypeError, ValueError: as :func:`spike_patterns`.
    """
    checks.module("model", model)
    checks.tensor("batch", batch)
    checks.choice("reduce", reduce, ("mean", "sum"))
    if alpha is not None:
        alpha = checks.number("alpha", alpha, above=0)
    samples = len(batch)
    kernel, calls = torch.zeros(samples, samples, dtype=torch.float64, device=batch.device), 0

    def look(name: str, node: nn.Module, x: torch.Tensor, spikes: torch.Tensor) -> None:
        nonlocal calls
        steps = spikes if getattr(node, "step_mode", "s") == "m" else spikes[None]
        for step in steps:
            kernel.add_(_similarity(step, alpha))
            calls += 1

    nodes = {n: m for n, m in model.named_modules() if isinstance(m, host.neuron.BaseNode)}
    with _untrained(model, reset), torch.no_grad(), watching(nodes, look):
        model(batch)
    if not calls:
        raise ValueError("model must have neurons that run on the batch, got none")
    return kernel / calls if reduce == "mean" else kernel


def _similarity(spikes: torch.Tensor, alpha: float | None) -> torch.Tensor:
    """n minus the weighted distance between what two samples fired, for all pairs."""
    fired = (spikes > 0).flatten(1).double()
    n, rate = fired.shape[1], fired.mean(1)
    both = fired @ fired.T
    distance = n * (rate[:, None] + rate[None, :]) - 2 * both
    if alpha is None:
        return n - distance
    by_chance = n * (rate[:, None] * (1 - rate[None, :]) + (1 - rate[:, None]) * rate[None, :])
    return n - alpha * distance / (by_chance + EPSILON)


@contextlib.contextmanager
def _untrained(model: nn.Module, reset: bool) -> Iterator[None]:
    """Training mode without dropout; modes and buffers go back to what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.train()
        for module in model.modules():
            if "dropout" in type(module).__name__.lower():
                module.eval()
        if reset:
            host.functional.reset_net(model)
        yield
    finally:
        if reset:
            host.functional.reset_net(model)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training
