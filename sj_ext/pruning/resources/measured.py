"""Resources that are measured in the user's own training forwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ... import checks
from .base import LayerInfo, Linear, Resource
from .operations import positions

__all__ = ["Energy", "Synops", "energy", "synops"]

#: energy of one addition and of one multiplication with addition, in pJ, 45 nm (Horowitz 2014)
PJ_PER_ADDITION = 0.9
PJ_PER_MAC = 4.6


def _in_backward() -> bool:
    """Whether autograd is running: what is computed then is computed a second time.

    Reversible training and checkpointing run layers again for their gradients, which is no
    operation of the network.
    """
    return torch._C._current_graph_task_id() != -1


class Synops(Linear):
    """MACs weighted by the share of inputs that are not zero, measured in training forwards."""

    name = "synops"

    def __init__(self, momentum: float = 0.9):
        super().__init__()
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        #: per layer: uses of a weight, share of inputs that are not zero, are all inputs 0 or 1
        self.measured: dict[str, tuple[int, float, bool]] = {}
        self._seen: dict[str, list[Any]] = {}
        self._frozen = False
        self._handles: list[Any] = []

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        super().bind(model, layers)
        for layer in layers:

            def hook(
                module: nn.Module,
                inputs: tuple[Any, ...],
                out: torch.Tensor,
                name: str = layer.name,
            ) -> None:
                if module.training and not self._frozen and not _in_backward():
                    self._watch(name, module, inputs[0].detach(), out)

            self._handles.append(layer.module.register_forward_hook(hook))

    def _watch(self, name: str, module: nn.Module, x: torch.Tensor, out: torch.Tensor) -> None:
        binary = ((x == 0) | (x == 1)).all()
        # tensors stay on their device: no synchronisation within the forward pass
        seen = self._seen.setdefault(name, [0, 0, x.new_zeros(()), torch.ones_like(binary)])
        seen[0] += positions(module, x, out)
        seen[1] += x.numel()
        seen[2] = seen[2] + x.count_nonzero()
        seen[3] = seen[3] & binary

    def update(self) -> None:
        for name, (uses, inputs, active, binary) in self._seen.items():
            rate, binary = float(active) / max(inputs, 1), bool(binary)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                shared = torch.tensor([rate, float(binary)], dtype=torch.float64)
                shared = shared.to(active.device) if active.is_cuda else shared
                torch.distributed.all_reduce(shared)
                shared /= torch.distributed.get_world_size()
                rate, binary = float(shared[0]), float(shared[1]) == 1.0
            if name in self.measured:
                rate = self.momentum * self.measured[name][1] + (1 - self.momentum) * rate
            self.measured[name] = (uses, rate, binary)
        self._seen.clear()

    @property
    def ready(self) -> bool:
        return all(layer.name in self.measured for layer in self.layers)

    def freeze(self, frozen: bool) -> None:
        self._frozen = frozen
        self._seen.clear()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def per_weight(self, layer: LayerInfo) -> float:
        uses, rate, _ = self.measured[layer.name]
        return uses * rate

    def state_dict(self) -> dict[str, Any]:
        return {"measured": {name: list(entry) for name, entry in self.measured.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.measured = {name: tuple(entry) for name, entry in state["measured"].items()}
        self._seen.clear()


class Energy(Synops):
    name = "energy"

    def per_weight(self, layer: LayerInfo) -> float:
        uses, rate, binary = self.measured[layer.name]
        return uses * (PJ_PER_ADDITION * rate if binary else PJ_PER_MAC)


def synops(momentum: float = 0.9) -> Resource:
    """As :func:`flops`, each layer weighted by the firing rate of its input.

    Rates are measured in the user's own training forwards, averaged over the ranks of a distributed
    run, and are held while masks are fixed.

    Args:
        momentum: of the average over steps, in [0, 1).

    Raises:
        TypeError: ``momentum`` is no number.
        ValueError: it is outside [0, 1).
    """
    return Synops(momentum)


def energy(momentum: float = 0.9) -> Resource:
    """Synaptic operations at 0.9 pJ; layers whose input is not 0 or 1 cost 4.6 pJ per MAC.

    Args:
        momentum: as for :func:`synops`.

    Raises:
        TypeError: ``momentum`` is no number.
        ValueError: it is outside [0, 1).
    """
    return Energy(momentum)
