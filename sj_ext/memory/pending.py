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
    ) -> Pending:
        """The output of ``units`` on ``source``, which ``compute`` gives when asked."""
        stand_in = torch.empty(0, dtype=source.dtype, device=source.device)
        pending = torch.Tensor._make_subclass(Pending, stand_in)
        vars(pending).update(source=source, units=units, compute=compute, taken=False, value=None)
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
