"""A tensor that is not computed yet: what a segment's modules hand on to each other.

All but the last module of a segment return one. Whatever looks at it, other than the next module
of the segment, gets the tensor: the modules run then and there, as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

__all__ = ["Pending", "computed"]


class Pending(torch.Tensor):
    """The output of modules that have not run.

    Attributes:
        source: the input of the first module.
        units: names of the modules, in order.
    """

    source: torch.Tensor
    units: tuple[str, ...]

    @staticmethod
    def of(
        source: torch.Tensor,
        units: tuple[str, ...],
        compute: Callable[[torch.Tensor, tuple[str, ...]], torch.Tensor],
        learns: bool = True,
    ) -> Pending:
        """The output of ``units`` on ``source``, which ``compute`` gives when asked.

        Args:
            source: the input of the first module.
            units: names of the modules, in order.
            compute: from the source and the units to the tensor.
            learns: whether the tensor will have a gradient.
        """
        # a gradient of any shape may be summed up to a scalar, so that the error below is reached
        stand_in = torch.empty((), dtype=source.dtype, device=source.device)
        if learns:
            stand_in = _NoWay.apply(stand_in.requires_grad_(), units[-1])
        pending = stand_in.as_subclass(Pending)
        vars(pending).update(source=source, units=units, compute=compute, learns=learns)
        vars(pending).update(taken=False, value=None)
        return pending

    def hand_on(self) -> torch.Tensor:
        """The source, for the next module of the segment; only once."""
        own = vars(self)
        _check_untaken(own)
        own["taken"] = True
        source: torch.Tensor = own["source"]
        return source

    def is_open(self) -> bool:
        """Whether nothing has looked at it yet."""
        return vars(self)["value"] is None

    def result(self) -> torch.Tensor:
        """The tensor."""
        own = vars(self)
        if own["value"] is None:
            _check_untaken(own)
            with torch.set_grad_enabled(own["learns"]):  # who looks first may ask for no gradient
                own["value"] = own["compute"](own["source"], own["units"])
        value: torch.Tensor = own["value"]
        return value

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Any function of PyTorch sees the tensor."""
        return func(*computed(args), **computed(kwargs or {}))


class _NoWay(torch.autograd.Function):
    """An autograd function takes what is pending unseen, and its gradient would be lost here."""

    @staticmethod
    def forward(ctx: Any, stand_in: torch.Tensor, unit: str) -> torch.Tensor:
        ctx.unit = unit
        return stand_in.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        raise RuntimeError(
            f"the output of {ctx.unit} went to a torch.autograd.Function, which it did not in the "
            "example run that compact was given: the network takes another path now. Give compact "
            f"an example that takes this path, or leave the module out with exclude=[{ctx.unit!r}]"
        )


def computed(values: Any) -> Any:
    """A nest of values with tensors in place of what is pending."""
    return tree_map(lambda value: value.result() if isinstance(value, Pending) else value, values)


def _check_untaken(own: dict[str, Any]) -> None:
    if own["taken"]:
        raise RuntimeError(
            f"the output of {own['units'][-1]} is used a second time, which it was not in the "
            "example run that compact was given: the network takes another path now. Give compact "
            "an example that takes this path, or leave the module out with exclude=[...]"
        )
