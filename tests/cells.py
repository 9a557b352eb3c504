"""Small temporally reversible cells, and how two of them are compared."""

import copy

import torch
from torch import nn

from sj_ext.layer import TemporalReversible

CHANNELS = (8, 16, 12)


class ConvLevel(nn.Module):
    """Down and up convolutions, batch normalisation, dropout and a block with a shortcut."""

    def __init__(self, below, channels, above=None, stride=2, norm=True, dropout=0.2):
        super().__init__()
        self.down = nn.Conv2d(below, channels, 3, stride, 1)
        self.up = None if above is None else nn.ConvTranspose2d(above, channels, 2, 2)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, below, above):
        h = self.down(below)
        if above is not None:
            h = h + self.up(above)
        return self.out(self.dropout(torch.relu(self.norm(h)))) + h


class LinearLevel(nn.Module):
    """A layer for each input."""

    def __init__(self, below, features, above=None, dropout=0.0):
        super().__init__()
        self.down = nn.Linear(below, features)
        self.up = None if above is None else nn.Linear(above, features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, below, above):
        h = 2 * self.down(self.dropout(below))
        return h if above is None else h + self.up(above)


def conv_levels(**options):
    low, middle, top = CHANNELS
    return [
        ConvLevel(3, low, middle, stride=1, **options),
        ConvLevel(low, middle, top, **options),
        ConvLevel(middle, top, **options),
    ]


def linear_levels(widths=(6, 16, 10, 5), feedback=True, **options):
    above = [*widths[2:], None] if feedback else [None] * (len(widths) - 1)
    return [
        LinearLevel(below, features, up, **options)
        for below, features, up in zip(widths, widths[1:], above, strict=False)
    ]


def conv_cell(decay=0.5, **options):
    return TemporalReversible(conv_levels(), [decay] * 3, **options)


def conv_input(num_steps, batch=3):
    """``[T, N, 3, 8, 8]``; the top level's potential is ``[N, 12, 2, 2]``."""
    return torch.randn(num_steps, batch, 3, 8, 8)


def twin(cell):
    """A copy on plain autograd."""
    other = copy.deepcopy(cell)
    other.memory = "autograd"
    return other


def loss_of(y, states):
    """Weighs every output differently."""
    wave = torch.arange(1.0, 1 + y.numel()).to(y).sin().view(y.shape)
    return (y * wave).sum() + sum(u.square().mean() for u in states)


def gradients(cell, x, seed=0, autocast=False):
    """Output and gradients by name, from a run whose random numbers start at ``seed``."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = cell(x)
    loss_of(y, cell.states).backward()
    found = {name: p.grad for name, p in cell.named_parameters()}
    return y.detach(), {"input": x.grad, **found}


def difference(found, wanted):
    """Relative L2 distance over the whole network; every gradient must be there in both."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name] is not None, f"no gradient for {name}"
        assert wanted[name] is not None, f"no gradient for {name} on plain autograd"
        assert found[name].shape == wanted[name].shape
    distance = sum((found[n].double() - wanted[n].double()).square().sum() for n in wanted)
    size = sum(wanted[n].double().square().sum() for n in wanted)
    return float((distance / size).sqrt())
