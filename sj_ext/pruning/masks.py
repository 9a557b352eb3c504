"""Masks of pruned weights, beside plain layers.

A pruned layer stays the layer that it was: the zeros stand in its own parameter, under its own
name, and nothing is computed in the forward pass. The mask says where they have to stay. While
compression goes on it is open and gradients reach every weight, so that a zero can come back. Once
it is closed, a hook on the parameter takes the gradient of cut weights away, and every optimizer's
step is followed by zeros (:mod:`sj_ext.pruning.optimizers`).

Masks travel with the layer through ``copy.deepcopy``, and are left out of its ``state_dict``, of a
pickle and of ``torch.save``. A copy that was made while a mask was open follows the mask of the
original: :func:`~sj_ext.pruning.make_permanent` gives an average of weights the zeros of the
network it averages.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.weak import WeakTensorKeyDictionary

from . import optimizers, sharding
from .layers import is_prunable
from .selection import hold_

__all__ = [
    "WeightMask",
    "close",
    "mask_of",
    "masked_layers",
]

#: where a layer keeps its masks, by the name of the parameter
ATTRIBUTE = "_pruning_masks"
#: which mask a parameter has, for the optimizer's hook
_OF_PARAMETER: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
#: every mask of a layer, to find those whose parameter was replaced
_ATTACHED: weakref.WeakSet[WeightMask] = weakref.WeakSet()
#: held while masks are added or listed, since threads may train a network each
_LISTING = threading.Lock()


class WeightMask:
    """The mask of one parameter: boolean, True where a weight is kept.

    Args:
        parameter: whose zeros are to be held.
        origin: the mask that is followed while this one is open, in a copy.
    """

    def __init__(self, parameter: torch.Tensor | None, origin: WeightMask | None = None):
        self.origin = origin
        #: True while the zeros have to stay; False while weights can come back
        self.closed = False
        #: the optimizer's hook has put the zeros back since this was last set to False
        self.fresh = False
        #: loaded, and not yet seen to fit the weights
        self.loaded = False
        self._mask: torch.Tensor | None = None
        self._parameter: weakref.ref[torch.Tensor] | None = None
        self._home: tuple[weakref.ref[nn.Module], str] | None = None
        self._handle: Any = None
        if parameter is not None:
            self.bind(parameter)

    # ---- the parameter ------------------------------------------------------------------------

    @property
    def parameter(self) -> torch.Tensor | None:
        """The parameter, or None where it is gone."""
        return None if self._parameter is None else self._parameter()

    def bind(self, parameter: torch.Tensor) -> None:
        """Hold the zeros of this parameter from now on; a wrapper may have put it in place."""
        self.release()
        self._parameter = weakref.ref(parameter)
        _OF_PARAMETER[parameter] = self
        if sharding.is_sharded(parameter):  # fully_shard writes the gradient by itself
            self._handle = parameter.register_post_accumulate_grad_hook(self._written)
        elif parameter.requires_grad:
            self._handle = parameter.register_hook(self._gradient)

    def live_in(self, module: nn.Module, name: str) -> None:
        """Follow what takes the parameter's place in its module, as ``fully_shard`` does."""
        self._home = weakref.ref(module), name
        with _LISTING:
            _ATTACHED.add(self)

    def follow(self) -> None:
        """Hold the zeros of the parameter that has replaced one that is gone."""
        if self.parameter is None and self._home is not None:
            module, name = self._home[0](), self._home[1]
            parameter = None if module is None else module._parameters.get(name)
            if parameter is not None and mask_of(module, name) is self:
                self.bind(parameter)

    def release(self) -> None:
        """Take the hook off; nothing holds the zeros any more."""
        parameter = self.parameter
        if parameter is not None and _OF_PARAMETER.get(parameter) is self:
            del _OF_PARAMETER[parameter]
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._parameter = None

    def _gradient(self, grad: torch.Tensor) -> torch.Tensor:
        if not self.closed:
            return grad
        if torch.compiler.is_compiling():
            return grad * self.mask
        kept = grad.clone()  # the incoming gradient may be somebody else's too
        hold_(kept, self.mask)
        return kept

    @torch.no_grad()
    def _written(self, parameter: torch.Tensor) -> None:
        if self.closed and parameter.grad is not None:
            hold_(sharding.local(parameter.grad), sharding.part_of(self.mask, parameter))

    # ---- the mask -----------------------------------------------------------------------------

    @property
    def mask(self) -> torch.Tensor:
        """Boolean, in the shape of the parameter and beside it; made when it is first asked for.

        Of a sharded parameter it is that of the whole.
        """
        parameter = self.parameter
        if self._mask is None:
            if parameter is None:
                raise RuntimeError("the parameter of this mask is gone")
            self._mask = sharding.blank_mask(parameter).fill_(True)
        elif parameter is not None and self._mask.device != parameter.device:
            self._mask = self._mask.to(parameter.device)  # the layer was moved
        return self._mask

    def set(self, mask: torch.Tensor) -> None:
        """Take another mask."""
        self._mask = mask

    def load(self, mask: torch.Tensor) -> None:
        """Take a closed mask from a checkpoint, whose weights may come later."""
        self._mask, self.closed, self.loaded = mask, True, True

    @property
    def zeros(self) -> int:
        """How many weights are cut."""
        return 0 if self._mask is None else self._mask.numel() - int(self._mask.count_nonzero())

    def open(self) -> None:
        """Let weights come back; the mask is forgotten."""
        self.closed, self._mask = False, None

    def close(self) -> None:
        """Put the zeros in their places and let them stay."""
        self.closed = True
        if self._handle is None and (parameter := self.parameter) is not None:
            self.bind(parameter)  # it may have been frozen before
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Put the zeros of a closed mask back, for example after a step with momentum."""
        parameter = self.parameter
        if self.closed and parameter is not None:
            self.verify()
            put_zeros(parameter, self.mask)

    def verify(self) -> bool:
        """False where a loaded mask cuts weights as large as those that it keeps."""
        parameter, fits = self.parameter, True
        if self.loaded and self.closed and parameter is not None and parameter.dim() > 1:
            weight, mask = sharding.whole(parameter.detach()), self.mask
            if self.zeros and bool(mask.any()):
                cut = weight[~mask].double().square().mean()
                fits = bool(cut <= 0.25 * weight[mask].double().square().mean())
        self.loaded = self.loaded and not fits
        return fits

    def closed_mask(self) -> torch.Tensor | None:
        """The mask where it is closed, or of the original that a copy follows; None if open."""
        if self.closed:
            return self.mask
        return None if self.origin is None else self.origin.closed_mask()

    def copied(self, memo: dict[int, Any]) -> WeightMask:
        """The mask of the copy that ``memo`` has of the parameter."""
        if id(self) not in memo:
            parameter = self.parameter
            twin = WeightMask(None if parameter is None else memo.get(id(parameter)), self)
            if self.closed:
                twin._mask, twin.closed = self.mask.clone(), True
            memo[id(self)] = twin
        return memo[id(self)]


class _Masks(dict[str, WeightMask]):
    """The masks of a layer: copied with it, and None in a pickle of it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Masks:
        return _Masks({name: mask.copied(memo) for name, mask in self.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def mask_of(module: Any, name: str = "weight") -> WeightMask | None:
    """The mask of a parameter of ``module``, or None where it has none."""
    found = vars(module).get(ATTRIBUTE)
    return None if found is None else found.get(name)


def own_mask(module: Any, name: str = "weight") -> WeightMask:
    """The mask, which every layer of a pruner has, bound to the present parameter."""
    mask = mask_of(module, name)
    if mask is None:
        raise RuntimeError(
            f"{module} has lost the mask that the pruner gave it: was make_permanent called before "
            "the pruner had finished?"
        )
    parameter = getattr(module, name)
    # a sharded parameter is whole for a moment only
    passing = sharding.is_sharded(mask.parameter) and not sharding.is_sharded(parameter)
    if mask.parameter is not parameter and not passing:
        mask.bind(parameter)
    return mask


def parameter_of(module: Any, name: str = "weight") -> nn.Parameter:
    """The parameter that holds the zeros."""
    return getattr(module, name)


def attach(module: Any, name: str = "weight", mask: WeightMask | None = None) -> WeightMask:
    """Give a parameter of ``module`` an open mask (or a share in another layer's)."""
    optimizers.after_every_step(_hold_all)
    mask = WeightMask(getattr(module, name)) if mask is None else mask
    masks = vars(module).get(ATTRIBUTE)
    if masks is None:
        masks = vars(module)[ATTRIBUTE] = _Masks()
    masks[name] = mask
    mask.live_in(module, name)
    mind_zeros(module)
    return mask


def mind_zeros(module: Any) -> None:
    """A layer that standardises its weight leaves zeros as they are from now on."""
    if getattr(module, "skip_zeros", None) is False:
        module.skip_zeros = True


def _hold_all(optimizer: Any, parameters: list[torch.Tensor], stepped: bool) -> None:
    """Zeros behind every closed mask of these parameters, whoever holds the pruner."""
    if stepped and len(_ATTACHED):
        with _LISTING:
            attached = list(_ATTACHED)
        for mask in attached:
            mask.follow()
        for parameter in parameters:
            mask = _OF_PARAMETER.get(parameter)
            if mask is not None and mask.closed:
                mask.hold()
                mask.fresh = True


def all_masks(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, WeightMask]]:
    """Name of the layer, layer, name of the parameter, and mask."""
    sharding.reshard(model)
    for layer, module in model.named_modules():
        for name in vars(module).get(ATTRIBUTE) or ():
            yield layer, module, name, own_mask(module, name)


def masked_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, WeightMask]]:
    """Name, module and mask of every linear or convolutional layer with a masked weight."""
    for layer, module, name, mask in all_masks(model):
        if name == "weight" and is_prunable(module):
            yield layer, module, mask


def close(module: nn.Module) -> None:
    """Close the mask of ``module.weight``: its zeros are put back and stay."""
    own_mask(module).close()


def put_zeros(parameter: torch.Tensor, mask: torch.Tensor) -> None:
    """Zeros behind a mask of the whole, in the part that this process holds."""
    mask = sharding.part_of(mask.to(parameter.device), parameter)
    hold_(sharding.local(parameter.detach()), mask)


def check_unpruned(name: str, module: Any, parameter: str = "weight") -> None:
    """Raise if somebody else computes or prunes a parameter of ``module``.

    Raises:
        ValueError: it is pruned already, or it is parametrized.
    """
    mask = mask_of(module, parameter)
    if mask is not None and mask.parameter is getattr(module, parameter, None):
        raise ValueError(
            f"layer {name!r} is pruned already: call sj_ext.pruning.make_permanent(model) to keep "
            "its zeros as plain weights before a new pruner is built"
        )
    hooks = module._forward_pre_hooks.values()
    pruned = [h._tensor_name for h in hooks if isinstance(h, prune.BasePruningMethod)]
    if parameter in pruned or hasattr(module, f"{parameter}_mask"):
        raise ValueError(
            f"layer {name!r} is pruned already by torch.nn.utils.prune: call "
            f"torch.nn.utils.prune.remove(module, {parameter!r}) first"
        )
    if parametrize.is_parametrized(module, parameter):
        kinds = [type(p).__name__ for p in module.parametrizations[parameter]]
        raise ValueError(
            f"the {parameter} of layer {name!r} is parametrized by {kinds}: a zero of the "
            "parameter would be no zero of the weight. Call "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {parameter!r}) first, or "
            "leave the layer out"
        )
    if not isinstance(getattr(module, parameter, None), nn.Parameter):
        raise ValueError(
            f"the {parameter} of layer {name!r} is no parameter (weight_norm and spectral_norm "
            "compute it before each forward): remove what computes it, or leave the layer out"
        )
    sharding.part_of(sharding.blank_mask(getattr(module, parameter)), getattr(module, parameter))


def from_zeros(parameter: torch.Tensor, name: str) -> torch.Tensor:
    """The mask of a parameter that has its zeros already, as checkpoints of 0.1 leave it.

    Raises:
        ValueError: it has none.
    """
    mask = sharding.whole(parameter.detach()) != 0
    if bool(mask.all()):
        raise ValueError(
            f"the state is of sj_ext 0.1, whose masks are in the model's state_dict, and layer "
            f"{name!r} has no zeros yet: call model.load_state_dict(plain_state_dict(...)) first"
        )
    return mask
