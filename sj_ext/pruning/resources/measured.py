"""Resources that are measured in the user's own training forwards."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from ... import checks
from ...layer.attention import MatrixProduct
from ...observe import at_rest, watching
from ...products import attention_products, operations
from ..layers import is_prunable
from ..ranks import several
from .base import LayerInfo, Linear, Resource
from .operations import run, samples_of, uses, uses_of

__all__ = ["Energy", "Synops", "energy", "synops"]

#: energy of one addition and of one multiplication with addition, in pJ, 45 nm (Horowitz 2014)
PJ_PER_ADDITION = 0.9
PJ_PER_MAC = 4.6


def _in_backward() -> bool:
    """Whether autograd is running: what is computed then is computed a second time.

    Reversible training and checkpointing run layers again for their gradients, which is no
    operation of the network.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def _of_torch(module: nn.Module) -> bool:
    return isinstance(module, (nn.MultiheadAttention, nn.RNNBase))


class Synops(Linear):
    """MACs weighted by the share of inputs that are not zero, measured in training forwards."""

    name = "synops"
    unit = "SOP"
    arguments = ("example_input",)

    def __init__(self, momentum: float = 0.9, example_input: Any = None):
        super().__init__()
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.example_input = example_input
        #: per layer: uses of a weight, share of inputs that are not zero, are all inputs 0 or 1
        self.measured: dict[str, tuple[int, float, bool]] = {}
        #: per layer and sample: uses of a weight in evaluation; None where no input was given
        self.inference: dict[str, float] | None = None
        #: per module that multiplies activations: multiply-accumulates of a dense computation, and
        #: the shares of them that are additions and multiplications, of what is left
        self.measured_products: dict[str, tuple[float, float, float]] = {}
        #: layers of which only the example was seen
        self._guessed: set[str] = set()
        self._seen: dict[str, list[Any]] = {}
        self._seen_products: dict[str, list[Any]] = {}
        self._frozen = False
        self._users: dict[int, list[LayerInfo]] = {}
        #: by id, the names of the modules whose products can be seen in training
        self._multiply: dict[int, str] = {}
        self._bare: list[LayerInfo] = []
        self._handle: Any = None

    def bind(self, model: nn.Module, layers: Sequence[LayerInfo]) -> None:
        super().bind(model, layers)
        for layer in layers:
            self._users.setdefault(id(layer.user), []).append(layer)
        kinds = (MatrixProduct, nn.MultiheadAttention)
        self._multiply = {id(m): name for name, m in model.named_modules() if isinstance(m, kinds)}
        self._bare = [x for x in layers if not (is_prunable(x.module) or _of_torch(x.module))]
        if self.example_input is not None:
            self._look_at_example(model)
        # one hook for all modules: none stays on the layers, in their copies or pickles
        reference = weakref.ref(self)  # WeakMethod would break a compiled graph

        def hook(*seen: Any) -> None:
            if (alive := reference()) is not None:
                alive._after_forward(*seen)

        self._handle = register_module_forward_hook(hook, with_kwargs=True)
        weakref.finalize(self, self._handle.remove)

    def _look_at_example(self, model: nn.Module) -> None:
        number = samples_of(model, self.example_input)
        counts, products = uses_of(model, self.layers, self.example_input)
        self.inference = {name: count / number for name, count in counts.items()}
        self.measured_products = {
            name: (dense / number, acs / dense, macs / dense)
            for name, (dense, acs, macs) in products.items()
            if dense
        }
        watched = [(layer, layer.user) for layer in self.layers]
        with at_rest(model), watching(watched, lambda layer, _, x, y: self._watch(layer, x, y)):
            run(model, self.example_input)
        self.update()
        for layer in self.layers:  # it runs in training alone
            self.measured.setdefault(layer.name, (0, 0.0, True))
        self._guessed = {*self.measured, *self.measured_products}
        self.example_input = None  # not kept alive

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        layers, name = self._users.get(id(module), ()), self._multiply.get(id(module))
        if (
            (layers or name is not None)
            and module.training
            and not self._frozen
            and not _in_backward()
        ):
            for layer in layers:
                if layer.user is module:
                    self._watch(layer, args[0] if args else next(iter(kwargs.values())), out)
            if name is not None:
                self._watch_product(name, module, args, kwargs)

    def _watch(self, layer: LayerInfo, x: Any, out: Any) -> None:
        values = getattr(x, "data", x).detach()  # of a packed sequence
        binary = ((values == 0) | (values == 1)).all()
        active = values.count_nonzero()
        if not layer.reads_input:  # what it reads is made inside of its module: real numbers
            binary, active = torch.zeros_like(binary), torch.full_like(active, values.numel())
        # tensors stay on their device: no synchronisation within the forward pass
        start = [0, 0, torch.zeros_like(active, dtype=torch.float32), torch.ones_like(binary)]
        seen = self._seen.setdefault(layer.name, start)
        seen[0] += uses(layer, x, out)
        seen[1] += values.numel()
        seen[2] = seen[2] + active
        seen[3] = seen[3] & binary

    @torch.no_grad()
    def _watch_product(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if isinstance(module, MatrixProduct):
            a, b = args[0] if args else kwargs["pair"]
            if any(
                layer.parameter.data_ptr() in (a.data_ptr(), b.data_ptr()) for layer in self._bare
            ):
                return  # it counts as a layer
            dense, pairs, spikes = operations(a.detach(), b.detach())
            acs, macs = pairs * spikes, pairs * ~spikes
        elif isinstance(module, nn.MultiheadAttention):  # which no spikes enter
            dense = attention_products(module, args, kwargs)
            acs, macs = torch.zeros(()), torch.tensor(float(dense))
        else:  # another module has the place of one that is gone
            return
        seen = self._seen_products.setdefault(name, [0, 0.0, 0.0])
        seen[0] += dense
        seen[1], seen[2] = seen[1] + acs, seen[2] + macs

    def update(self) -> None:
        self._update_products()
        for name, (count, inputs, active, binary) in self._seen.items():
            rate, binary = float(active) / max(inputs, 1), bool(binary)
            if self.across_ranks and several():
                shared = torch.tensor([rate, float(binary)], dtype=torch.float64)
                shared = self._mean(shared, active)
                rate, binary = float(shared[0]), float(shared[1]) == 1.0
            if name in self.measured and name not in self._guessed:
                rate = self.momentum * self.measured[name][1] + (1 - self.momentum) * rate
            self.measured[name] = (count, rate, binary)
            self._guessed.discard(name)
        self._seen.clear()

    def _update_products(self) -> None:
        for name, (dense, acs, macs) in self._seen_products.items():
            live = dense * self.left.get(name, 1.0)
            shares = torch.tensor([float(acs) / live, float(macs) / live], dtype=torch.float64)
            if self.across_ranks and several():
                shares = self._mean(shares, acs)
            before = self.measured_products.get(name)
            if self.inference is not None:  # costs are per sample, and in evaluation
                dense = 0 if before is None else before[0]
            if before is not None and name not in self._guessed:
                known = torch.tensor(before[1:], dtype=torch.float64)
                shares = self.momentum * known + (1 - self.momentum) * shares
            self.measured_products[name] = (dense, *shares.tolist())
            self._guessed.discard(name)
        self._seen_products.clear()

    @staticmethod
    def _mean(numbers: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks."""
        numbers = numbers.to(near.device) if near.is_cuda else numbers
        torch.distributed.all_reduce(numbers)
        return numbers / torch.distributed.get_world_size()

    @property
    def ready(self) -> bool:
        return all(layer.name in self.measured for layer in self.layers)

    def freeze(self, frozen: bool) -> None:
        self._frozen = frozen
        self._seen.clear()
        self._seen_products.clear()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def uses(self, layer: LayerInfo) -> float:
        """How often a weight is used: per sample where that is known, else in a step."""
        if self.inference is None:
            return self.measured[layer.name][0]
        return self.inference[layer.name]

    def amount(self) -> float:
        if self.inference is None:
            raise ValueError(
                f"an absolute budget of {self.name!r} is per sample: give the pruner "
                "example_input, one batch as the model takes it"
            )
        return self.total()

    def per_weight(self, layer: LayerInfo) -> float:
        return self.uses(layer) * self.measured[layer.name][1]

    def products(self) -> dict[str, float]:
        return {
            name: dense * self._price(acs, macs)
            for name, (dense, acs, macs) in self.measured_products.items()
        }

    def _price(self, acs: float, macs: float) -> float:
        """Of additions and multiplications."""
        return acs + macs

    def state_dict(self) -> dict[str, Any]:
        return {
            "measured": {name: list(entry) for name, entry in self.measured.items()},
            "products": {name: list(entry) for name, entry in self.measured_products.items()},
            "guessed": sorted(self._guessed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.measured = {name: tuple(entry) for name, entry in state["measured"].items()}
        products = state.get("products", self.measured_products)
        self.measured_products = {name: tuple(entry) for name, entry in products.items()}
        self._guessed = set(state.get("guessed", ()))
        self._seen.clear()
        self._seen_products.clear()


class Energy(Synops):
    name = "energy"
    unit = "J"

    def amount(self) -> float:
        return super().amount() * 1e-12

    def per_weight(self, layer: LayerInfo) -> float:
        _, rate, binary = self.measured[layer.name]
        return self.uses(layer) * (PJ_PER_ADDITION * rate if binary else PJ_PER_MAC)

    def _price(self, acs: float, macs: float) -> float:
        return PJ_PER_ADDITION * acs + PJ_PER_MAC * macs


def synops(momentum: float = 0.9, example_input: Any = None) -> Resource:
    """As :func:`flops`, each layer weighted by the firing rate of its input.

    Of a product of activations the pairs count in which neither is 0, as
    :func:`sj_ext.analysis.synaptic_operations` counts them.

    Rates are measured in the user's own training forwards, averaged over the ranks of a distributed
    run, and are held while masks are fixed.

    Args:
        momentum: of the average over steps, in [0, 1).
        example_input: one batch as the network takes it. It gives a first measurement before any
            training, the costs per sample that absolute budgets need, and the layers that run in
            training alone, which cost nothing. Without it, products count where they are made by a
            ``MatrixProduct``, as in this package's attentions, or by ``nn.MultiheadAttention``;
            with it, all do.

    Raises:
        TypeError: ``momentum`` is no number.
        ValueError: it is outside [0, 1).
    """
    return Synops(momentum, example_input)


def energy(momentum: float = 0.9, example_input: Any = None) -> Resource:
    """Synaptic operations at 0.9 pJ; layers whose input is not 0 or 1 cost 4.6 pJ per MAC.

    So do products of two activations of which neither is spikes.

    Args:
        momentum: as for :func:`synops`.
        example_input: as for :func:`synops`.

    Raises:
        TypeError: ``momentum`` is no number.
        ValueError: it is outside [0, 1).
    """
    return Energy(momentum, example_input)
