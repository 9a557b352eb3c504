"""State dicts of the IMP paper's own program, for a network whose neurons have been swapped.

The program calls the learned potential ``init_state`` (in older files ``mem``), and its ``'layer'``
shape is ``[1, 1, 1, 1]``. Everything else is a matter of the network, not of its neurons.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..arguments import checked
from .initial_potential import LearnableInitialPotential
from .lazy import is_lazy

__all__ = ["published_to_ours"]

_THEIRS = ("init_state", "mem")


@checked
def published_to_ours(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], *, eager: bool | None = None
) -> dict[str, torch.Tensor]:
    r"""A state dict of the IMP paper's program, in the names and shapes of ``model``.

    The program's eager nodes start at :math:`V[0] = V_{reset} + \mathrm{squash}(\theta)`, its lazy
    ones, as those of this package, at :math:`\mathrm{squash}(\theta)`. Where :math:`V_{reset}` is 0
    or None they are the same; elsewhere ``eager`` says which ones the state dict is of.

    Args:
        model: a network with IMP neurons (see :func:`sj_ext.swap_neurons`), of the same structure
            as the program's network; it is left as it is.
        state_dict: the program's, with potentials of shape ``[1, 1, 1, 1]``, ``[1, C, 1, 1]``,
            ``[1, 1, H, W]`` or ``[1, C, H, W]``; a ``module.`` that distributed training puts
            before its names is dropped. Names of other things stay as they are.
        eager: whether the state dict is of the program's eager nodes; needed only where a neuron
            has a ``v_reset`` other than 0 and None.

    Returns:
        What ``model.load_state_dict`` takes.

    Raises:
        ValueError: ``model`` has no IMP neuron for an ``init_state``, or its theta has another
            size; ``eager`` is needed and was not given; a squashed potential of an eager node,
            whose offset cannot be put into theta.
    """
    nodes = {n: m for n, m in model.named_modules() if isinstance(m, LearnableInitialPotential)}
    ours: dict[str, torch.Tensor] = {}
    for name, value in state_dict.items():
        name = name.removeprefix("module.")
        owner, _, last = name.rpartition(".")
        if last in _THEIRS and owner in nodes:
            ours[f"{owner}.theta"] = _theta(name, value, nodes[owner], eager)
        elif last == "init_state":
            raise ValueError(
                f"state_dict has {name!r}, but model has no neuron with a learnable initial "
                f"potential at {owner!r}; it has them at {sorted(nodes)}"
            )
        else:
            ours[name] = value
    return ours


def _theta(
    name: str, value: torch.Tensor, node: LearnableInitialPotential, eager: bool | None
) -> torch.Tensor:
    if not is_lazy(node.theta):
        if value.numel() != node.theta.numel():
            raise ValueError(
                f"state_dict has {name!r} of shape {list(value.shape)}, but the neuron there has "
                f"imp_shape={node.imp_shape!r} and a theta of shape {list(node.theta.shape)}"
            )
        value = value.reshape(node.theta.shape)
    offset = node.v_reset
    if not offset or eager is False:
        return value
    if eager is None:
        raise ValueError(
            f"eager must be True or False where v_reset is not 0: the neuron of {name!r} has "
            f"v_reset={offset}, which the program's eager nodes add to the learned potential"
        )
    if node.imp_squash is not None:
        raise ValueError(
            f"eager nodes add v_reset={offset} outside the squash, which no theta of the neuron of "
            f"{name!r} gives: make it with imp_squash=lambda theta: v_reset + squash(theta), and "
            f"give eager=False"
        )
    return value + offset
