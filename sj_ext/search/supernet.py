"""One network that holds all of a space: every path through its slots is an architecture."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .. import checks, host
from ..arguments import checked
from .space import Architecture, Space
from .space.space import check_rng

__all__ = ["OneShot", "Slot"]


@checked
class Slot(nn.Module):
    """Candidates of which one runs.

    Args:
        candidates: modules by the names of the slot's options.

    Shapes:
        Those of the candidates, which take and give the same, ``[*]``.

    Raises:
        TypeError: a candidate is no module.
        ValueError: there are none.
    """

    def __init__(self, candidates: Mapping[str, nn.Module]):
        super().__init__()
        if not candidates:
            raise ValueError("candidates must hold at least one module, got none")
        for module in candidates.values():
            checks.module("candidates", module)
        self.names = tuple(candidates)
        self.candidates = nn.ModuleList(candidates.values())
        self.active = 0

    def activate(self, name: Any) -> None:
        """Let that candidate run.

        Raises:
            ValueError: there is none of that name.
        """
        self.active = self.names.index(checks.choice("name", name, self.names))

    def forward(self, *inputs: Any) -> Any:
        return self.candidates[self.active](*inputs)

    def extra_repr(self) -> str:
        return f"active={self.names[self.active]!r}"


class OneShot(nn.Module):
    """A supernet with a slot per choice, of which one path runs and is trained at a time.

    Between two paths all neurons are reset, since the one path's potentials are none of the
    other's.

    Args:
        model: a network with :class:`Slot` modules in the order of the space's free slots.

    Shapes:
        as the network takes it and gives it.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: it has no slots.

    Source: Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling",
    ECCV 2020 (arXiv 1904.00420).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: nn.Module = checks.module("model", model)
        if not self.slots():
            raise ValueError("model must have at least one Slot, got none")

    @property
    def published(self) -> Any:
        """How the public program names what the network holds, if it has one."""
        return getattr(self.model, "published", None)

    def slots(self) -> list[Slot]:
        """The slots, in the network's order."""
        return [module for module in self.model.modules() if isinstance(module, Slot)]

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def activate(self, space: Space, architecture: Architecture) -> None:
        """Let the path of an architecture run; neurons start from rest.

        Args:
            space: of the architecture.
            architecture: which candidates run.

        Raises:
            ValueError: the architecture is not of the space, or the space is of another supernet.
        """
        space.valid(architecture)
        slots, free = self.slots(), space.free
        if len(slots) != len(free) or any(
            slot.names != tuple(space.options(i)) for slot, i in zip(slots, free, strict=True)
        ):
            raise ValueError(
                f"space: {space.name!r} is not this supernet's, which has {len(slots)} slots, the "
                f"first of {', '.join(slots[0].names)}"
            )
        for slot, i in zip(slots, free, strict=True):
            slot.activate(architecture.genes[i])
        host.functional.reset_net(self)

    def sample_path(self, space: Space, rng: random.Random) -> Architecture:
        """Let a path at random run, and say which.

        Args:
            space: of this supernet.
            rng: a ``random.Random``.

        Raises:
            TypeError: ``rng`` is something else.
            ValueError: the space is of another supernet.
        """
        architecture = space.sample(check_rng(rng))
        self.activate(space, architecture)
        return architecture

    def child_state(self) -> dict[str, torch.Tensor]:
        """The active path's part of the state dict, in the names of the network without slots.

        Shapes:
            those of the parameters and buffers, ``[*]``.
        """
        inactive, active = [], {}
        for name, module in self.model.named_modules():
            if isinstance(module, Slot):
                inactive.append(f"{name}.candidates.")
                active[f"{name}.candidates.{module.active}."] = f"{name}."
        state = {}
        for key, value in self.model.state_dict().items():
            path = next((p for p in active if key.startswith(p)), None)
            if path is not None:
                state[active[path] + key.removeprefix(path)] = value
            elif not key.startswith(tuple(inactive)):
                state[key] = value
        return state

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[Any]) -> None:
        """Measure the active path's running statistics anew: those of the supernet mix all paths.

        Every batch counts alike. Afterwards the network is in the mode that it was in, at rest.

        Args:
            batches: inputs of the network; at least one.

        Raises:
            ValueError: there are none.
        """
        norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        modes = [(module, module.training) for module in self.modules()]
        seen = 0
        try:
            self.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean of all batches
                norm.train()
            for batch in batches:
                host.functional.reset_net(self)
                self(batch)
                seen += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for module, training in modes:
                module.training = training
            host.functional.reset_net(self)
        if not seen:
            raise ValueError("batches must hold at least one, got none")
