"""A tensor that is not computed yet: what a segment's modules hand on to each other.

All but the last module of a segment return one. Whatever looks at it, other than the next module
of the segment, gets the tensor: the modules run then and there, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from .route import Route
from .streams import is_sum

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
        vars(pending).update(taken=False, value=None, route=None, number=None)
        return pending

    @staticmethod
    def on(route: Route, number: int, unit: str) -> Pending:
        """A value of a trunk, which ``unit`` makes."""
        (x,) = route.known.values()
        pending = Pending.of(x, (unit,), lambda value, units: value)
        vars(pending).update(source=None, route=route, number=number)
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
        own = vars(self)
        return own["value"] is None and (own["route"] is None or own["route"].is_open)

    def place(self) -> tuple[Route | None, int]:
        """The pass through a trunk that it is a value of, and which; None and -1 for others."""
        own = vars(self)
        return (own["route"], own["number"]) if self.is_open() and own["route"] else (None, -1)

    def result(self) -> torch.Tensor:
        """The tensor."""
        own = vars(self)
        if own["value"] is None:
            _check_untaken(own)
            with torch.set_grad_enabled(own["learns"]):  # who looks first may ask for no gradient
                if own["route"] is not None:
                    own["value"] = own["route"].value(own["number"])
                else:
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
        """Any function of PyTorch sees the tensor, except for a sum that a trunk expects."""
        if is_sum(func, args, kwargs):
            total = _expected_sum(func, args)
            if total is not None:
                return total
        return func(*computed(args), **computed(kwargs or {}))


def _expected_sum(func: Any, args: Sequence[Any]) -> torch.Tensor | None:
    """The sum of two values of a trunk, None if it is none that the trunk expects."""
    routes = [vars(x)["route"] for x in args if isinstance(x, Pending)]
    route: Route | None = routes[0]
    if route is None or any(own is not route for own in routes):
        return None
    in_place = func.__name__ in ("add_", "__iadd__")
    if in_place and not isinstance(args[0], Pending):
        return None
    numbers = [vars(x)["number"] if isinstance(x, Pending) else route.number_of(x) for x in args]
    a, b = numbers
    if a is None or b is None or not all(x.is_open() for x in args if isinstance(x, Pending)):
        return None
    number = route.add(a, b)
    if number is None:
        return None
    total: Any = args[0] if in_place else None
    if number != route.trunk.output:
        if total is None:
            return Pending.on(route, number, "a sum")
        vars(total)["number"] = number
        return total
    value = route.output()
    if total is not None:
        vars(total)["value"] = value
    return value


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
    if own["taken"] or (own["route"] is not None and own["route"].is_done):
        raise RuntimeError(
            f"the output of {own['units'][-1]} is used a second time, which it was not in the "
            "example run that compact was given: the network takes another path now. Give compact "
            "an example that takes this path, or leave the module out with exclude=[...]"
        )
