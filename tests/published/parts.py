"""What every family of transformers needs to stand for a recording: parts, names, layouts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sj_ext import host
from sj_ext.layer.spiking import NeuronFactory, lif
from sj_ext.model.transformer import PublishedNames
from sj_ext.model.transformer.published import published_names


class ProgramSigmoid(host.surrogate.Sigmoid):
    """The host's sigmoid, multiplied out in the order of the programs.

    SpikingJelly 2.x computes a leaky neuron with its own class in an operator that rounds
    otherwise, which shows in gradients that are 0 in exact arithmetic and rounding in a recording.
    """


def program_lif(tau: float = 2.0, node: type[nn.Module] | None = None) -> NeuronFactory:
    """The default neuron of the models, rounded as in the programs."""
    return lif(tau, ProgramSigmoid(alpha=4.0), node)


class Shaped:
    """One of our parameters, with its gradient in the shape that the program has it in."""

    def __init__(self, tensor: torch.Tensor, shape: torch.Size):
        self.tensor, self.shape = tensor, shape

    @property
    def grad(self) -> torch.Tensor | None:
        grad = self.tensor.grad
        return None if grad is None else grad.reshape(self.shape)

    def detach(self) -> torch.Tensor:
        return self.tensor.detach().reshape(self.shape)


class Rearranged(nn.Module):
    """A module behind functions of its input and output, for a program of another layout."""

    def __init__(self, module: nn.Module, before=None, after=None):
        super().__init__()
        self.module, self.before, self.after = module, before, after

    def forward(self, x):
        y = self.module(x if self.before is None else self.before(x))
        return y if self.after is None else self.after(y)


def steps_first(x: torch.Tensor) -> torch.Tensor:
    """Event frames as programs take them, ``[N, T, ...]``, to ``[T, N, ...]``; images stay."""
    return x.transpose(0, 1) if x.dim() == 5 else x


def mean_over_steps(y: torch.Tensor) -> torch.Tensor:
    """Logits ``[T, N, classes]`` to ``[N, classes]``."""
    return y.mean(0)


def loaded_part(
    part: nn.Module,
    state: Mapping[str, torch.Tensor],
    names: PublishedNames,
    public: str,
    ours: str,
) -> dict[str, torch.Tensor]:
    """Load a part's weights and say which of its tensors stands for which public name.

    ``public`` and ``ours`` are what comes before the part's names in the whole model.
    """
    host.functional.set_step_mode(part, "m")
    renamed = {name: names.ours(public + name) for name in state}
    return _filled(part, state, {n: o and o.removeprefix(ours) for n, o in renamed.items()})


def tensors_of(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor | Shaped]:
    """Our tensor for every public name of a whole model's state."""
    return _named(model, state, published_names(model, state))


def _filled(part, state, names):
    targets = part.state_dict()
    part.load_state_dict(
        {o: state[n].reshape(targets[o].shape) for n, o in names.items() if o is not None}
    )
    return _named(part, state, names)


def _named(module, state, names):
    ours = dict(module.named_parameters()) | dict(module.named_buffers())
    return {
        name: ours[o] if ours[o].shape == state[name].shape else Shaped(ours[o], state[name].shape)
        for name, o in names.items()
        if o is not None
    }
